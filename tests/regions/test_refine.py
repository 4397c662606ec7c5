"""Utility refinement: what is taken out, what chance would take out, and the next best in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ballast.errors import RegionError, UsageError
from ballast.locate import locate
from ballast.regions import overlap, refine
from ballast.regions.selection import Scope
from tests.regions.worlds import places, region
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)


def test_the_union_of_the_utility_regions_is_taken_out() -> None:
    safety = region({"layers.2.query": [0, 3, 7], "layers.2.down": [1], "lm_head": [2, 4]})
    useful = [region({"layers.2.query": [3, 9]}), region({"layers.2.query": [3], "lm_head": [4, 5, 6]})]
    found = refine(safety, useful)
    assert places(found.region) == {("layers.2.query", 0), ("layers.2.query", 7), ("layers.2.down", 1), ("lm_head", 2)}
    assert (found.located, found.removed, found.share) == (6, 2, 2 / 6)
    assert found.chance == pytest.approx((3 * 2 / 35 + 2 * 3 / 20) / 6)  # sum of a_s b_s / N_s over the matrices
    assert [(row["layer"], row["role"], row["located"], row["removed"]) for row in found.cells] == [
        (2, "down", 1, 0),
        (2, "query", 3, 1),
        (None, "lm_head", 2, 1),
    ]
    assert found.region.metadata.parents[0] == safety.region_id
    assert found.summary()["region_id"] == found.region.region_id
    assert "region" not in found.summary()


def test_chance_and_excess_agree_with_random_draws() -> None:
    safety = region({"layers.2.query": range(12), "lm_head": range(6)})
    useful = region({"layers.2.query": range(20, 35), "lm_head": range(3, 10)})
    removed = [refine(safety, [useful.sample_like(seed)]).removed for seed in range(400)]
    found = refine(safety, [useful])
    assert np.mean(removed) / 18 == pytest.approx(found.chance, abs=3 * np.std(removed) / 18 / 20)
    assert found.excess == pytest.approx((found.removed - np.mean(removed)) / np.std(removed), rel=0.1)


def test_overlap_after_refinement_follows_the_identity() -> None:
    """IoU' = IoU (1 - a) / (1 - b), a the utility share of the shared core, b that of the union."""
    first, second = region({"lm_head": range(10)}), region({"lm_head": range(4, 14)})
    useful = region({"lm_head": [5, 6, 7, 12, 19]})
    before, after = overlap([first, second])[0], overlap([refine(one, [useful]).region for one in (first, second)])[0]
    a = (first & second).intersection_size(useful) / before.intersection
    b = (first | second).intersection_size(useful) / before.union
    assert after.iou == pytest.approx(before.iou * (1 - a) / (1 - b))


def test_nothing_left_and_no_utility_are_refused() -> None:
    safety = region({"lm_head": [1, 2]})
    with pytest.raises(RegionError, match=r"All 2 weights of the region are also among those for utility"):
        refine(safety, [region({"lm_head": [0, 1, 2]})])
    with pytest.raises(UsageError, match="at least one utility region"):
        refine(safety, [])


@pytest.mark.parametrize("scope", ["global", "per_tensor", "per_row"])
def test_the_next_best_take_the_places_of_what_is_left_out(scope: Scope) -> None:
    lm = tiny_lm("llama")
    scores = locate(lm, prompt_set("p", ["Why?"]), "wanda")
    useful = locate(lm, prompt_set("u", ["Sums"], ["4"]), "wanda").select(0.1, scope=scope)
    located = scores.select(0.1, scope=scope)
    refilled = scores.select(0.1, scope=scope, outside=useful)
    assert len(refilled) == len(located)
    assert refilled.intersection_size(useful) == 0
    left = refine(located, [useful]).region
    assert refilled.intersection_size(left) == len(left)
    assert refilled.metadata.parents == (useful.region_id,)
    assert places(scores.select(0.1, scope=scope)) == places(located)  # the scores are as before
    with pytest.raises(UsageError, match="use direction top"):
        scores.select(0.1, direction="bottom", outside=useful)
