"""Chance levels against brute force and simulation, and what the permutation test promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import kstest

from ballast.regions import overlap
from ballast.regions.chance import chance_iou, chance_of_all, intersection_moments, permutation_test
from ballast.regions.counting import count_shared
from ballast.regions.margins import expected_by_margins, margins_of
from ballast.regions.unit_overlap import window_overlap
from tests.regions.worlds import SmallPart, region


def counts(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


STRATA = counts(400, 90, 1000)
FIRST, SECOND = counts(40, 50, 10), counts(120, 20, 300)  # unequal densities, over and under the cut for exact means


def shuffled(chosen: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """A region with these numbers per stratum, by moving bits."""
    return [generator.permutation(np.arange(size) < count) for size, count in zip(STRATA, chosen, strict=True)]


def test_chance_of_unequal_densities_is_what_shuffling_bits_gives():
    generator = np.random.default_rng(1)
    shared, ious = [], []
    for _ in range(4000):
        pairs = list(zip(shuffled(FIRST, generator), shuffled(SECOND, generator), strict=True))
        shared.append(sum(int((a & b).sum()) for a, b in pairs))
        ious.append(shared[-1] / sum(int((a | b).sum()) for a, b in pairs))
    mean, variance = intersection_moments(FIRST, SECOND, STRATA)
    assert abs(np.mean(shared) - mean) < 4 * np.sqrt(variance / 4000)
    assert np.var(shared) == pytest.approx(variance, rel=0.1)
    standard_error = np.std(ious) / np.sqrt(4000)
    assert abs(np.mean(ious) - chance_iou(FIRST, SECOND, STRATA)) < 4 * standard_error + 1 / 500**2


def test_chance_of_three_regions_is_what_shuffling_bits_gives():
    generator = np.random.default_rng(2)
    chosen = np.stack([FIRST, SECOND, counts(200, 45, 500)])
    ratios = []
    for _ in range(1500):
        drawn = [np.concatenate(shuffled(one, generator)) for one in chosen]
        ratios.append(np.logical_and.reduce(drawn).sum() / np.logical_or.reduce(drawn).sum())
    error = 4 * np.std(ratios) / np.sqrt(1500)
    assert abs(np.mean(ratios) - chance_of_all(chosen, STRATA)) < error + 1e-4
    pair = chosen[:2]
    assert chance_of_all(pair, STRATA) == pytest.approx(chance_iou(pair[0], pair[1], STRATA), rel=1e-12)


def test_the_permutation_test_draws_what_shuffling_bits_gives():
    """p at every quantile of the brute-force distribution."""
    generator = np.random.default_rng(3)
    shared = [
        sum(int((a & b).sum()) for a, b in zip(shuffled(FIRST, generator), shuffled(SECOND, generator), strict=True))
        for _ in range(4000)
    ]
    for share in (0.1, 0.5, 0.9, 0.99):
        observed = int(np.quantile(shared, share))
        found = permutation_test(observed, FIRST, SECOND, STRATA, draws=4000, seed=(0,))
        assert found.p == pytest.approx(np.mean(np.array(shared) >= observed), abs=4 * np.sqrt(0.5 / 4000))
        assert found.drawn == "hypergeometric"


def test_p_is_uniform_for_random_regions():
    big = STRATA * 1000
    generator = np.random.default_rng(4)
    a, b = FIRST * 1000, SECOND * 1000
    observed = generator.hypergeometric(a, big - a, b, (400, 3)).sum(axis=1)
    found = [
        permutation_test(int(one), a, b, big, draws=1000, seed=(5, number)).p for number, one in enumerate(observed)
    ]
    assert kstest(found, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09


def test_p_of_random_twins_is_not_small_and_that_of_a_planted_core_is():
    parts = (SmallPart("a", 0, "query", (60, 50)), SmallPart("b", 1, "down", (50, 60)))
    original = region({"a": range(0, 3000, 20), "b": range(0, 3000, 30)}, parts)
    found = [overlap([original, original.sample_like(seed)], draws=200, seed=seed)[0].p.p for seed in range(60)]
    assert np.mean(np.array(found) <= 0.05) <= 0.2
    # 15 of 150 and 10 of 100 are common beside the 7.5 + 3.3 of chance
    powers = []
    for seed in range(20):
        twin = original.sample_like(seed)
        core = {name: set(original.indices[name].tolist()[::10]) for name in ("a", "b")}
        rest = {name: [place for place in twin.indices[name].tolist() if place not in core[name]] for name in core}
        size = {name: len(original.indices[name]) - len(core[name]) for name in core}
        planted = region({name: core[name] | set(rest[name][: size[name]]) for name in core}, parts)
        powers.append(overlap([original, planted], seed=seed)[0].p.p)
    assert np.mean(np.array(powers) <= 0.01) >= 0.95
    assert min(powers) >= 1 / 1001


def test_strata_that_numpy_cannot_draw_from_are_drawn_from_the_normal():
    size = counts(2 * 10**9)
    selected = counts(2 * 10**7)
    mean, variance = intersection_moments(selected, selected, size)
    for z, expected in ((0, 0.5), (1.645, 0.05)):
        observed = round(mean + z * np.sqrt(variance))
        found = permutation_test(observed, selected, selected, size, draws=4000, seed=(0,))
        assert found.drawn == "normal"
        assert found.p == pytest.approx(expected, abs=0.04)
    many = np.full(2001, 50)
    assert permutation_test(5, np.full(2001, 2), np.full(2001, 2), many, draws=9, seed=(0,)).drawn == "normal"


def test_empty_strata_do_not_matter():
    a, b, n = counts(5, 0, 9), counts(4, 3, 0), counts(50, 60, 70)
    with_them = permutation_test(2, a, b, n, draws=50, seed=(1,))
    assert with_them == permutation_test(2, a[:1], b[:1], n[:1], draws=50, seed=(1,))
    assert permutation_test(0, counts(5, 0), counts(0, 5), counts(9, 9), draws=50, seed=(1,)).p == 1


@pytest.mark.parametrize(("lengths", "layers", "chance"), [((9, 9), 32, 0.26), ((6, 6), 32, 0.16), ((8, 8), 28, 0.26)])
def test_chance_of_windows_is_the_mean_over_all_placements(lengths, layers, chance):
    found = window_overlap((0, lengths[0]), (0, lengths[1]), layers)
    assert found.chance == pytest.approx(chance, abs=0.01)
    placements = layers - lengths[0] + 1
    assert found.p == pytest.approx(placements / placements**2)  # equal windows, of all pairs


def test_windows_of_four_layers_by_hand():
    """[0, 2) and [1, 4) of four: the first has three places, the second two."""
    sets = [({s, s + 1}, {t, t + 1, t + 2}) for s, t in itertools.product(range(3), range(2))]
    ious = [len(a & b) / len(a | b) for a, b in sets]
    found = window_overlap((0, 2), (1, 4), 4)
    assert found.chance == pytest.approx(np.mean(ious))
    assert found.p == np.mean([iou >= 1 / 4 for iou in ious])
    assert (found.start_difference, found.end_difference) == (1, 2)


def test_margins_of_experts_are_counted_per_matrix():
    """A stack of two experts along the last axis, against plain loops."""
    part = SmallPart("e", 0, "experts.down", (4, 3, 2), "out_in", 2)
    chosen = np.random.default_rng(0).random(part.shape) < 0.5
    tensor = region({"e": np.flatnonzero(chosen)}, (part,)).layout["e"]
    found = margins_of(tensor, np.flatnonzero(chosen))
    assert np.array_equal(found.rows, np.stack([chosen[:, :, expert].sum(axis=1) for expert in (0, 1)]))
    assert np.array_equal(found.columns, np.stack([chosen[:, :, expert].sum(axis=0) for expert in (0, 1)]))


def test_regions_that_gather_in_the_same_columns_are_near_the_chance_of_margins():
    """Each column with a density of its own, entries otherwise at random: far above the chance of the matrix alone."""
    generator = np.random.default_rng(0)
    part = SmallPart("a", 0, "query", (300, 40))
    density = np.where(np.arange(40) < 4, 0.5, 0.01)
    drawn = [np.flatnonzero(generator.random(part.shape) < density) for _ in range(2)]
    (row,) = overlap([region({"a": chosen.tolist()}, (part,)) for chosen in drawn])
    assert row.margin_chance == pytest.approx(row.iou, rel=0.1)
    assert row.chance < row.iou / 5
    assert row.p.p < 0.01


def test_chance_of_margins_of_flat_margins_is_that_of_the_matrix_and_never_above_the_smaller():
    part = SmallPart("a", 0, "query", (20, 20))
    diagonal = [21 * place for place in range(20)]
    shifted = [20 * place + (place + 3) % 20 for place in range(20)]
    shared = count_shared([region({"a": diagonal}, (part,)), region({"a": shifted}, (part,))])
    assert shared.by_margins[0, 0] == pytest.approx(20 * 20 / 400)
    cross = region({"a": sorted({*range(20), *range(0, 400, 20)})}, (part,))
    assert count_shared([cross, cross]).by_margins[0, 0] == len(cross)  # 100 by the formula, of 39
    bias = region({"b": [1, 2, 3]}, (SmallPart("b", 0, "bias", (12,), "none"),))
    one = margins_of(bias.layout["b"], np.array([1, 2, 3]))
    assert expected_by_margins(one, one).tolist() == [9 / 12]
