"""Regions compared k at a time against plain sets, and against every possible draw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ballast.errors import UsageError
from ballast.regions import Region, RegionFile, overlaps
from ballast.regions.kway import SUBSETS, kway_overlaps
from tests.regions.worlds import PARTS, SmallPart, places, region

TINY = (SmallPart("a", 0, "query", (2, 2)), SmallPart("b", 0, "down", (1, 3)))


def drawn(count: int, seed: int = 0) -> list[Region]:
    generator = np.random.default_rng(seed)
    return [
        region({part.name: generator.choice(part.numel, part.numel // 2, replace=False).tolist() for part in PARTS})
        for _ in range(count)
    ]


def test_every_subset_is_what_plain_sets_say() -> None:
    regions = drawn(5)
    sets = [places(one) for one in regions]
    rows = kway_overlaps(regions)
    assert [row.regions for row in rows] == [2, 3, 4, 5]
    for row in rows:
        chosen = list(itertools.combinations(sets, row.regions))
        ious = [len(set.intersection(*subset)) / len(set.union(*subset)) for subset in chosen]
        assert row.subsets == len(chosen)
        assert row.iou == pytest.approx(np.mean(ious))
        assert (row.lowest, row.highest) == (min(ious), max(ious))
        everywhere = set.union(*sets)
        assert row.in_at_least == sum(sum(one in group for group in sets) >= row.regions for one in everywhere)
    assert rows[-1].iou == overlaps(regions).all.iou
    assert rows[-1].chance == pytest.approx(overlaps(regions).all.chance)


def test_chance_is_the_ratio_of_means_over_all_draws_outside_of_a_region() -> None:
    """Two of three places of `a` (one is barred) and one of three of `b`, for each of three regions."""
    regions = [region({"a": [0, 1], "b": [number]}, TINY) for number in range(3)]
    barred = region({"a": [3]}, TINY)
    draws = [{("a", one) for one in a} | {("b", b)} for a in itertools.combinations(range(3), 2) for b in range(3)]
    of_three = [(set.intersection(*some), set.union(*some)) for some in itertools.product(draws, repeat=3)]
    shared, either = (sum(len(pair[side]) for pair in of_three) for side in (0, 1))
    (_, row) = kway_overlaps(regions, outside=barred)
    assert row.chance == pytest.approx(shared / either)
    assert row.in_at_least_chance == pytest.approx(shared / len(of_three))


def test_more_subsets_than_are_looked_at_are_drawn_by_the_seed() -> None:
    regions = drawn(11)
    rows = kway_overlaps(regions)
    assert [row.subsets for row in rows] == [55, 165, SUBSETS, SUBSETS, SUBSETS, SUBSETS, 165, 55, 11, 1]
    assert rows == kway_overlaps(regions)
    assert rows != kway_overlaps(regions, seed=1)
    whole = [len(set.intersection(*some)) / len(set.union(*some)) for some in subsets_of(regions, 4)]
    assert rows[2].iou == pytest.approx(np.mean(whole), abs=0.01)


def subsets_of(regions: list[Region], k: int) -> list[tuple[set[tuple[str, int]], ...]]:
    return list(itertools.combinations([places(one) for one in regions], k))


def test_files_say_the_same(tmp_path) -> None:
    regions = drawn(3)
    files = []
    for number, one in enumerate(regions):
        one.save(tmp_path / f"{number}.safetensors")
        files.append(RegionFile.open(tmp_path / f"{number}.safetensors"))
    assert kway_overlaps(files) == kway_overlaps(regions)


@pytest.mark.parametrize("count", [1, 64])
def test_other_numbers_of_regions_are_refused(count) -> None:
    with pytest.raises(UsageError, match="give 2 to 63"):
        kway_overlaps(drawn(1) * count)
