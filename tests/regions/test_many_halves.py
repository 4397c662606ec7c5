"""Corrected overlaps of many sets at once are those of each pair by itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ballast.regions import Region
from ballast.regions.ceiling import Halves, corrected_overlap
from ballast.regions.chance import chance_iou
from ballast.regions.many_halves import corrected_overlaps
from tests.regions.worlds import SmallPart, places, region

PARTS = (SmallPart("a", 0, "query", (20, 30)), SmallPart("e", 0, "experts.up", (2, 20, 10), "out_in", 0))
BARRED = region({"a": range(300), "e": range(50)}, PARTS)


def noisy(seed: int) -> list[list[tuple[Region, Region]]]:
    """Three sets, two splits; what is drawn lies outside of BARRED, and halves of one set resemble each other most."""
    generator = np.random.default_rng(seed)
    sizes = {part.name: part.numel for part in PARTS}
    free = {name: sorted(set(range(sizes[name])) - set(BARRED.indices[name].tolist())) for name in sizes}
    common = {name: generator.standard_normal(len(free[name])) for name in free}
    own = [{name: generator.standard_normal(len(free[name])) for name in free} for _ in range(3)]

    def located(which: int) -> Region:
        chosen = {}
        for name, allowed in free.items():
            noise = generator.standard_normal(len(allowed))
            best = np.argsort(common[name] + own[which][name] + noise)[-len(allowed) // 10 :]
            chosen[name] = sorted(allowed[place] for place in best)
        return region(chosen, PARTS)

    return [[(located(which), located(which)) for which in range(3)] for _ in range(2)]


def test_without_a_barred_region_every_pair_is_as_alone() -> None:
    splits = noisy(0)
    found = corrected_overlaps(splits)
    assert list(found) == [(0, 1), (0, 2), (1, 2)]
    for (one, other), numbers in found.items():
        sides = [[Halves(*split[side]) for split in splits] for side in (one, other)]
        alone = corrected_overlap(*sides)
        assert numbers.corrected is not None
        assert numbers.corrected == pytest.approx(alone.corrected)
        assert numbers.ceilings == pytest.approx(alone.ceilings)
        assert (numbers.splits, numbers.resamples, numbers.low) == (2, 0, None)


def test_chance_is_outside_of_the_barred_region_and_overlaps_are_those_of_plain_sets() -> None:
    splits = noisy(1)
    found = corrected_overlaps(splits, outside=BARRED)
    free = np.array([600 - 300, 200 - 50, 200])  # the first fifty entries of the stack are the first expert's
    for (one, other), numbers in found.items():
        ious, chances = [], []
        for split in splits:
            for mine, theirs in ((split[one][0], split[other][1]), (split[one][1], split[other][0])):
                a, b = places(mine), places(theirs)
                ious.append(len(a & b) / len(a | b))
                counts = [np.array([len(a_s) for a_s in by_matrix(of)]) for of in (a, b)]
                chances.append(chance_iou(*counts, free))
        assert numbers.iou == pytest.approx(np.mean(ious))
        assert numbers.chance == pytest.approx(np.mean(chances))
        within = [np.mean([iou(*split[side]) for split in splits]) for side in (one, other)]
        assert numbers.ceiling == pytest.approx(np.sqrt(within[0] * within[1]))


def by_matrix(chosen: set[tuple[str, int]]) -> list[set[int]]:
    return [
        {place for name, place in chosen if name == "a"},
        *({place for name, place in chosen if name == "e" and place // 200 == expert} for expert in (0, 1)),
    ]


def iou(one: Region, other: Region) -> float:
    a, b = places(one), places(other)
    return len(a & b) / len(a | b)


def test_pairs_are_all_of_them() -> None:
    assert list(corrected_overlaps([split[:2] for split in noisy(2)])) == list(itertools.combinations(range(2), 2))
