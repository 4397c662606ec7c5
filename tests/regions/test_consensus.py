from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.errors import RegionError, UsageError
from ballast.regions.consensus import agreement, consensus, expected_memberships
from ballast.regions.counting import count_shared
from tests.regions.test_region_file import selections
from tests.regions.worlds import SmallPart, places, region


@settings(max_examples=30)
@given(st.lists(selections, min_size=2, max_size=5))
def test_a_consensus_is_that_of_plain_sets(selected):
    regions = [region(one) for one in selected]
    sets = [places(one) for one in regions]
    everything = set.union(*sets)
    shared = count_shared(regions)
    rows = agreement(regions, shared.selected, shared.sizes, splits=1)
    for at_least in range(1, len(regions) + 1):
        expected = {entry for entry in everything if sum(entry in one for one in sets) >= at_least}
        assert rows[at_least - 1].weights == len(expected)
        if expected:
            found = consensus(regions, at_least)
            assert places(found) == expected
            assert found.metadata.parents == tuple(one.region_id for one in regions)
        else:
            with pytest.raises(RegionError, match="No weight is in at least"):
                consensus(regions, at_least)


def test_expected_memberships_are_the_mean_over_all_draws():
    """Regions of 1, 2 and 2 of four places: every placement of each."""
    draws = itertools.product(*(itertools.combinations(range(4), count) for count in (1, 2, 2)))
    members = [[sum(place in one for one in drawn) for place in range(4)] for drawn in draws]
    expected = np.mean([np.bincount(one, minlength=4) for one in members], axis=0)
    assert expected_memberships(np.array([[1], [2], [2]]), np.array([4])) == pytest.approx(expected)


def test_a_planted_core_is_stable_and_the_rest_is_not():
    part = (SmallPart("a", 0, "query", (50, 40)),)
    generator = np.random.default_rng(0)
    regions = [
        region({"a": sorted({*range(50), *generator.choice(np.arange(50, 2000), 50, replace=False).tolist()})}, part)
        for _ in range(8)
    ]
    shared = count_shared(regions)
    rows = agreement(regions, shared.selected, shared.sizes)
    assert rows[7].weights == 50
    assert rows[7].stability == 1
    assert rows[0].stability < 0.5
    assert rows[0].chance == pytest.approx(2000 * (1 - 0.95**8))
    assert rows[7].chance == pytest.approx(2000 * 0.05**8)
    assert agreement(regions[:3], shared.selected[:3], shared.sizes)[0].stability is None


def test_stability_is_the_mean_iou_of_consensus_regions_of_disjoint_halves():
    """Four regions have three divisions into halves; the mean over many draws is near the mean over these."""
    generator = np.random.default_rng(1)
    part = (SmallPart("a", 0, "query", (10, 10)),)
    regions = [region({"a": generator.choice(100, 40, replace=False).tolist()}, part) for _ in range(4)]
    shared = count_shared(regions)
    rows = agreement(regions, shared.selected, shared.sizes, splits=600)
    for at_least, share in ((1, 1), (2, 1), (3, 2), (4, 2)):
        ious = []
        for group in ((0, 1), (0, 2), (0, 3)):
            rest = [number for number in range(4) if number not in group]
            one, other = (consensus([regions[number] for number in side], share) for side in (group, rest))
            ious.append(one.iou(other))
        assert rows[at_least - 1].stability == pytest.approx(np.mean(ious), abs=0.02)


def test_what_makes_no_consensus_is_refused():
    one = region({"lm_head": [1]})
    for at_least in (0, 3):
        with pytest.raises(UsageError, match="impossible"):
            consensus([one, one], at_least)
    with pytest.raises(RegionError, match="different parameters"):
        consensus([one, region({"lm_head": [1]}, [SmallPart("lm_head", None, "lm_head", (4, 5))])], 1)
    with pytest.raises(RegionError, match="different weights"):
        consensus([one, region({"lm_head": [1]}, salt="tuned")], 1)
