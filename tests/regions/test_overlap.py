from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.errors import RegionError, UsageError
from ballast.regions import Region, RegionFile, overlap, overlaps
from ballast.regions.chance import chance_iou, intersection_moments
from ballast.regions.counting import count_shared
from ballast.regions.unit_overlap import window_overlap
from tests.regions.test_region_file import selections
from tests.regions.worlds import PARTS, SmallPart, places, region


def counts(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def all_draws(first, second, sizes) -> list[tuple[int, int]]:
    """(intersection, union) of every placement of the second region against a fixed first one, all equally likely."""
    fixed = {(stratum, place) for stratum, count in enumerate(first) for place in range(count)}
    strata = [itertools.combinations(range(size), count) for size, count in zip(sizes, second, strict=True)]
    draws = []
    for chosen in itertools.product(*strata):
        other = {(stratum, place) for stratum, found in enumerate(chosen) for place in found}
        draws.append((len(fixed & other), len(fixed | other)))
    return draws


CASES = [((2,), (3,), (6,)), ((1, 2), (2, 1), (4, 5)), ((0, 3), (2, 2), (4, 5)), ((2, 1, 1), (2, 0, 2), (3, 3, 4))]


@pytest.mark.parametrize("case", CASES)
def test_chance_of_small_regions_is_the_mean_over_all_draws(case):
    draws = all_draws(*case)
    expected = sum(shared / union for shared, union in draws) / len(draws)
    assert chance_iou(*(counts(*numbers) for numbers in case)) == pytest.approx(expected, rel=1e-12)
    mean, variance = intersection_moments(*(counts(*numbers) for numbers in case))
    shared = [intersection for intersection, _ in draws]
    assert mean == pytest.approx(np.mean(shared), rel=1e-12)
    assert variance == pytest.approx(np.var(shared), rel=1e-12)


@pytest.mark.parametrize(("percent", "expected"), [(0.1, 0.05), (1, 0.50), (2, 1.0), (3, 1.5), (10, 5.3), (20, 11.1)])
def test_chance_at_equal_density_is_d_over_two_minus_d(percent, expected):
    size = 10_000_000
    selected = counts(round(size * percent / 100))
    assert 100 * chance_iou(selected, selected, counts(size)) == pytest.approx(expected, abs=0.05)
    density = percent / 100
    assert chance_iou(selected, selected, counts(size)) == pytest.approx(density / (2 - density), rel=1e-12)


def test_strata_raise_the_chance_level():
    # 300 of 12,000 entries each, all in a tensor of 3,000: 30 shared by chance, not 7.5
    selected = counts(300, 0)
    assert chance_iou(selected, selected, counts(3000, 9000)) == pytest.approx(30 / 570)
    assert chance_iou(counts(300), counts(300), counts(12_000)) == pytest.approx(7.5 / 592.5)


def test_random_twins_overlap_as_chance_says():
    parts = (SmallPart("a", 0, "query", (40, 50)), SmallPart("e", 0, "experts.up", (2, 20, 25), "out_in", 0))
    original = region({"a": range(0, 2000, 10), "e": range(0, 400, 2)}, parts)
    twins = [original.sample_like(seed) for seed in range(60)]
    rows = [overlap([original, twin])[0] for twin in twins]
    assert np.mean([row.iou for row in rows]) == pytest.approx(rows[0].chance, rel=0.1)
    excess = [row.excess for row in rows]
    assert abs(np.mean(excess)) < 4 / math.sqrt(60)
    assert 0.6 < np.std(excess) < 1.5
    assert rows[0].size_cap == 1
    # every expert is a stratum of its own: 20 + 200 * 200 / 500 shared
    shared = 200 * 200 / 2000 + 200 * 200 / 500
    assert rows[0].chance == pytest.approx(shared / (800 - shared))


def test_every_pair_is_compared():
    regions = [region({"lm_head": chosen}) for chosen in ([0, 1, 2], [2, 3], [4])]
    rows = overlap(regions)
    assert [(row.first, row.second) for row in rows] == [(0, 1), (0, 2), (1, 2)]
    assert [(row.intersection, row.union) for row in rows] == [(1, 4), (0, 4), (0, 3)]
    for row in rows:
        a, b = places(regions[row.first]), places(regions[row.second])
        assert row.iou == len(a & b) / len(a | b)
        assert row.size_cap == pytest.approx(min(len(a), len(b)) / max(len(a), len(b)))


def test_outside_of_a_region_chance_draws_from_the_rest():
    """Of `a` four places are free, of `b` three; every placement is drawn."""
    parts = (SmallPart("a", 0, "query", (2, 3)), SmallPart("b", 0, "down", (1, 3)), SmallPart("c", 1, "down", (1, 2)))
    barred = region({"a": [1, 4], "c": [0, 1]}, parts)  # of c nothing is left
    one, other = region({"a": [0, 2], "b": [0]}, parts), region({"a": [0, 3, 5], "b": [1, 2]}, parts)
    found = overlaps([one, other], outside=barred)
    draws = all_draws((2, 1), (3, 2), (4, 3))
    shared = [intersection for intersection, _ in draws]
    (row,) = found.pairs
    assert (row.intersection, row.union) == (1, 7)
    assert row.chance == pytest.approx(sum(shared / union for shared, union in draws) / len(draws))
    assert row.excess == pytest.approx((1 - np.mean(shared)) / np.std(shared))
    assert found.sizes.tolist() == [4, 3, 0]
    assert found.both.tolist() == [[1, 0, 0]]
    assert found.all.chance == pytest.approx(np.mean(shared) / (8 - np.mean(shared)))
    assert row.chance > overlaps([one, other]).pairs[0].chance
    with pytest.raises(RegionError, match="different parameters"):
        overlaps([one, other], outside=region({"lm_head": [1]}))


def test_units_outside_of_those_of_a_region():
    scored = {"query": 6, "feed_forward": 4}
    one = of_units("neuron", {"query": ((0, -1, 1), (0, -1, 2))}, scored)
    other = of_units("neuron", {"query": ((0, -1, 2), (0, -1, 3)), "feed_forward": ((0, 0, 1),)}, scored)
    barred = of_units("neuron", {"query": ((0, -1, 0), (0, -1, 4)), "feed_forward": ((0, 1, 1),)}, scored)
    units = overlaps([one, other], outside=barred).pairs[0].units
    draws = all_draws((2, 0), (2, 1), (4, 3))
    assert units.chance == pytest.approx(sum(shared / union for shared, union in draws) / len(draws))
    assert units.chance > overlaps([one, other]).pairs[0].units.chance


def test_a_full_tensor_leaves_nothing_to_chance():
    full = region({"lm_head": range(20)})
    (row,) = overlap([full, full])
    assert (row.iou, row.chance, row.excess) == (1, pytest.approx(1), None)


def of_units(granularity: str, chosen: dict[str, tuple[tuple[int, ...], ...]], scored: dict[str, int]) -> Region:
    plain = region({"lm_head": [1]})
    more = {"granularity": granularity, "units": "units", "selected_units": chosen, "scored_units": scored}
    return Region(plain.indices, plain.metadata.model_copy(update=more))


def test_units_are_compared_within_their_kinds():
    """Two of six query and two of four feed-forward neurons against one and three: every placement is drawn."""
    scored = {"query": 6, "feed_forward": 4}
    one = of_units("neuron", {"query": ((0, -1, 1), (0, -1, 2)), "feed_forward": ((0, 0, 1), (0, 1, 1))}, scored)
    other = of_units("neuron", {"query": ((0, -1, 2),), "feed_forward": ((0, 1, 1), (0, 1, 2), (0, 0, 2))}, scored)
    found = overlap([one, other])[0].units
    draws = all_draws((2, 2), (1, 3), (6, 4))
    assert (found.granularity, found.intersection, found.union, found.iou) == ("neuron", 2, 6, 2 / 6)
    assert found.chance == pytest.approx(sum(shared / union for shared, union in draws) / len(draws), rel=1e-12)
    assert found.size_cap == (1 + 2) / (2 + 3)
    shared = [intersection for intersection, _ in draws]
    assert found.excess == pytest.approx((2 - np.mean(shared)) / np.std(shared))
    assert overlap([one, other])[0].as_json()["units"]["union"] == 6


def test_units_that_cannot_be_compared_have_no_overlap():
    head = of_units("head", {"head": ((0, -1, 1),)}, {"head": 8})
    for other in (
        region({"lm_head": [1]}),
        of_units("layer", {"layer": ((0, -1, 0),)}, {"layer": 8}),
        of_units("head", {"head": ((0, -1, 1),)}, {"head": 6}),
    ):
        (row,) = overlap([head, other])
        assert (row.units, row.iou) == (None, 1)
        assert row.as_json()["units"] is None


@settings(max_examples=30)
@given(st.lists(selections, min_size=2, max_size=4))
def test_every_count_is_that_of_plain_sets(selected):
    regions = [region(one) for one in selected]
    sets = [places(one) for one in regions]
    found = overlaps(regions, draws=1)
    assert (found.all.intersection, found.all.union) == (len(set.intersection(*sets)), len(set.union(*sets)))
    assert found.all.iou == len(set.intersection(*sets)) / len(set.union(*sets))
    matrix_of = {
        (part.name, place): (part.name, int(regions[0].layout[part.name].matrix_of(np.array([place]))[0]))
        for part in PARTS
        for place in range(part.numel)
    }
    for row in found.pairs:
        a, b = sets[row.first], sets[row.second]
        assert (row.intersection, row.union, row.iou) == (len(a & b), len(a | b), len(a & b) / len(a | b))
        assert row.contained == (len(a & b) / len(a), len(a & b) / len(b))
        matrices = [{entry for entry in matrix_of if matrix_of[entry] == one} for one in set(matrix_of.values())]
        ious = [len(a & b & one) / len((a | b) & one) for one in matrices if (a | b) & one]
        assert row.macro_iou == pytest.approx(np.mean(ious))
        assert (row.matrices, row.matrices_left_out) == (len(ious), len(matrices) - len(ious))
        for parts, attribute in ((row.by_layer, "layer"), (row.by_role, "role")):
            for part in parts:
                within = {p.name for p in PARTS if getattr(p, attribute) == getattr(part, attribute)}
                mine, theirs = ({entry for entry in one if entry[0] in within} for one in (a, b))
                assert (part.intersection, part.union) == (len(mine & theirs), len(mine | theirs))
                assert part.iou == (len(mine & theirs) / len(mine | theirs) if mine | theirs else None)
            assert sum(part.intersection for part in parts) == row.intersection


@settings(max_examples=40)
@given(selections, selections)
def test_identities(one, other):
    a, b = region(one), region(other)
    (row,), (mirrored,), (same,) = (overlap(pair, draws=1) for pair in ((a, b), (b, a), (a, a)))
    assert same.iou == same.macro_iou == same.size_cap == 1
    assert (row.iou, row.chance, row.macro_iou, row.margin_chance) == pytest.approx(
        (mirrored.iou, mirrored.chance, mirrored.macro_iou, mirrored.margin_chance)
    )
    assert row.iou <= row.size_cap + 1e-12
    assert row.iou == a.iou(b)


def test_regions_in_their_files_give_the_same_numbers(tmp_path):
    regions = [region({"lm_head": [0, 1, 2], "layers.10.experts": [7, 30]}), region({"lm_head": [2, 3]})]
    for number, one in enumerate(regions):
        one.save(tmp_path / f"{number}.safetensors")
    stored = [RegionFile.open(tmp_path / f"{number}.safetensors") for number in (0, 1)]
    assert overlaps(stored)[:2] == overlaps(regions)[:2]  # the pairs, and all at once


def test_one_stack_of_experts_is_counted_expert_by_expert():
    """64 entries an expert: the words of 64 bits fall together with the experts."""
    part = SmallPart("e", 0, "experts.up", (3, 8, 8), "out_in", 0)
    one, other = region({"e": [0, 1, 63, 64, 190]}, (part,)), region({"e": [1, 63, 65, 190]}, (part,))
    assert count_shared([one, other]).both.tolist() == [[2, 0, 1]]
    (row,) = overlap([one, other])
    assert row.macro_iou == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_regions_of_other_weights_are_refused_unless_asked_for():
    one, other = region({"lm_head": [1, 2]}), region({"lm_head": [2]}, salt="tuned")
    with pytest.raises(RegionError, match="different weights of lm_head"):
        overlap([one, other])
    assert overlap([one, other], other_weights=True)[0].iou == 1 / 2


def test_windows_of_layers_are_compared_as_windows():
    scored = {"layer": 4}
    one = of_units("layer", {"layer": ((0, -1, 0), (1, -1, 0))}, scored)
    other = of_units("layer", {"layer": tuple((layer, -1, 0) for layer in (1, 2, 3))}, scored)
    found = overlap([one, other])[0].units
    assert found.window == window_overlap((0, 2), (1, 4), 4)
    assert found.as_json()["window"]["end_difference"] == 2
    with_hole = of_units("layer", {"layer": ((0, -1, 0), (2, -1, 0))}, scored)
    assert overlap([one, with_hole])[0].units.window is None


def test_what_cannot_be_compared_is_refused():
    one = region({"lm_head": [1]})
    with pytest.raises(UsageError, match="two regions"):
        overlap([one])
    with pytest.raises(UsageError, match="no p-value"):
        overlap([one, one], draws=0)
    with pytest.raises(RegionError, match="different parameters"):
        overlap([one, region({"lm_head": [1]}, [SmallPart("lm_head", None, "lm_head", (4, 5))])])
    with pytest.raises(RegionError, match="undefined"):
        chance_iou(counts(0), counts(0), counts(5))
