"""The numbers of the tables against plain sets of weights."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control

from ballast.prompts import load_prompts
from ballast.prompts.overlap import near_duplicates
from ballast.regions import Region
from ballast.study import study
from ballast.study.tables import CellRow, KWayRow, PairRow, RefinementRow
from tests.study.world import ROWS, SAFETY, Here, grid, read_rows, save_model, write_sets

torch.set_num_threads(1)

Weights = set[tuple[str, int]]
METHODS: dict[str, Any] = {
    "wanda": {"method": "wanda", "fraction": 0.05, "scope": "per_tensor", "utility_fraction": 0.03},
    "snip": {"method": "snip", "sizes": [0.05, 0.1], "utility_fraction": 0.02},
    "neurons": {"method": "neurons", "fraction": 0.25, "utility_fraction": 0.1, "settings": {"kinds": "feed_forward"}},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, two splits, three methods of which two have the same layout, one of neurons."""
    folder = tmp_path_factory.mktemp("study")
    save_model(folder / "one")
    write_sets(folder)
    chosen = grid(folder, methods=METHODS, seeds=[0, 1], splits=2)
    found = study(chosen, out=folder / "out", engine=Here())
    assert found["state"] == "done", found["failures"]
    return folder / "out"


class World:
    """Every region of the study as a plain set, and where each weight could be."""

    def __init__(self, out: Path) -> None:
        self.regions: dict[tuple[Any, ...], Region] = {}
        for row in read_rows(out, "cells", CellRow):
            name = row.set if row.use == "safety" else f"utility {row.refinement}"
            if row.use == "safety" or row.refinement == "union":
                place = (row.method, row.size, name, row.seed, row.part, row.refinement)
                self.regions[place] = Region.load(out / "cells" / f"{row.hash}.safetensors")

    def weights(self, *place: Any) -> Weights:
        region = self.regions[place]
        return {(name, index) for name, indices in region.indices.items() for index in indices.tolist()}

    def useful(self, method: str, seed: int) -> Weights:
        share = METHODS[method]["utility_fraction"]
        return self.weights(method, share, "utility union", seed, "whole", "union")

    def places(self, method: str, size: float, seed: int, refinement: str) -> dict[str, int]:
        """Weights there are in each parameter, outside of the utility region if it was taken out."""
        region = self.regions[method, size, "locks", seed, "whole", "none"]
        barred = self.useful(method, seed) if refinement != "none" else set()
        return {
            name: tensor.numel - sum(other == name for other, _ in barred) for name, tensor in region.layout.items()
        }


@pytest.fixture(scope="module")
def world(out: Path) -> World:
    return World(out)


@pytest.fixture(scope="module")
def pairs(out: Path) -> list[PairRow]:
    return read_rows(out, "pairs", PairRow)


def iou(one: Weights, other: Weights) -> float:
    return len(one & other) / len(one | other)


def chance(one: Weights, other: Weights, places: dict[str, int]) -> float:
    shared = 0.0
    for name, size in places.items():
        a, b = (sum(place == name for place, _ in weights) for weights in (one, other))
        shared += a * b / size if size else 0.0
    return shared / (len(one) + len(other) - shared)


def of_sets(pairs: list[PairRow]) -> Iterator[PairRow]:
    return (row for row in pairs if row.comparison == "sets")


def test_every_comparable_pair_has_one_row(pairs: list[PairRow]) -> None:
    sets = list(itertools.combinations(SAFETY, 2))
    scored = [("wanda", 0.05), ("snip", 0.05), ("snip", 0.1), ("neurons", 0.25)]
    expected = {
        ("sets", refinement, *one, *one, *two, seed, seed)
        for refinement in ("none", "subtract", "refill")
        for one in scored
        for two in sets
        for seed in (0, 1)
    }
    expected |= {("seeds", "none", *one, *one, name, name, 0, 1) for one in scored for name in SAFETY}
    expected |= {  # neurons of one kind select from other parameters than the rest
        ("methods", "none", "wanda", 0.05, "snip", size, name, name, seed, seed)
        for size in (0.05, 0.1)
        for name in SAFETY
        for seed in (0, 1)
    }
    found = [
        (
            *(row.comparison, row.refinement, row.method_first, row.size_first, row.method_second, row.size_second),
            *(row.set_first, row.set_second, row.seed_first, row.seed_second),
        )
        for row in pairs
    ]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_overlaps_are_those_of_plain_sets(pairs: list[PairRow], world: World) -> None:
    for row in pairs:
        one, other = (
            world.weights(*side, "whole", row.refinement)
            for side in (
                (row.method_first, row.size_first, row.set_first, row.seed_first),
                (row.method_second, row.size_second, row.set_second, row.seed_second),
            )
        )
        assert (row.intersection, row.union, row.iou) == (len(one & other), len(one | other), iou(one, other))
        assert (row.weights_first, row.weights_second) == (len(one), len(other))
        assert (row.contained_first, row.contained_second) == (
            len(one & other) / len(one),
            len(one & other) / len(other),
        )
        assert row.size_first is not None
        places = world.places(row.method_first, row.size_first, row.seed_first, row.refinement)
        touched = {name for name, _ in one | other}
        per_matrix = [
            iou(*({place for place in side if place[0] == name} for side in (one, other))) for name in touched
        ]
        assert row.macro_iou == pytest.approx(np.mean(per_matrix))
        assert (row.matrices, row.matrices_left_out) == (len(touched), len(places) - len(touched))
        if max(len(one), len(other)) >= 200:
            assert row.chance == pytest.approx(chance(one, other, places))
            anywhere = ({("all", number) for number in range(len(side))} for side in (one, other))
            assert row.global_chance == pytest.approx(chance(*anywhere, {"all": sum(places.values())}))
            assert (row.margin_chance is None) == (row.refinement != "none")  # counted over all places
        assert row.prompts == ROWS
        assert row.draws == 1000
        assert 0 < row.p <= 1


def test_units_are_counted_also_after_refinement(pairs: list[PairRow], world: World) -> None:
    rows = [row for row in of_sets(pairs) if row.method_first == "neurons"]
    assert len(rows) == 3 * 3 * 2
    for row in rows:
        places = [("neurons", 0.25, name, row.seed_first, "whole") for name in (row.set_first, row.set_second)]
        records = [world.regions[*place, row.refinement].metadata for place in places]
        units = [set(record.selected_units["feed_forward"]) for record in records]
        assert (row.unit_intersection, row.unit_union) == (len(units[0] & units[1]), len(units[0] | units[1]))
        assert row.unit_iou == len(units[0] & units[1]) / len(units[0] | units[1])
        assert row.granularity_first == row.granularity_second == "neuron"
    assert all(row.unit_iou is None for row in pairs if row.method_first != "neurons")


def test_corrected_overlaps_are_those_of_opposite_halves(pairs: list[PairRow], world: World) -> None:
    checked = 0
    for row in pairs:
        if row.comparison == "seeds":  # two draws of one set share prompts
            assert (row.half_iou, row.corrected, row.ceiling) == (None, None, None)
            continue
        sides = [
            (row.method_first, row.size_first, row.set_first, row.seed_first),
            (row.method_second, row.size_second, row.set_second, row.seed_second),
        ]
        halves = [
            [[world.weights(*side, f"{split}{half}", row.refinement) for half in "ab"] for split in (0, 1)]
            for side in sides
        ]
        ceilings = [np.mean([iou(*pair) for pair in side]) for side in halves]
        opposite = [
            iou(first[half], second[1 - half]) for first, second in zip(*halves, strict=True) for half in (0, 1)
        ]
        across = np.mean(opposite)
        assert (row.splits, row.half_prompts) == (2, ROWS // 2)
        assert row.half_iou == pytest.approx(across)
        assert (row.ceiling_first, row.ceiling_second) == pytest.approx(tuple(ceilings))
        assert row.ceiling == pytest.approx(math.sqrt(ceilings[0] * ceilings[1]))
        if row.corrected is not None:
            assert row.half_chance is not None
            room = row.ceiling - row.half_chance
            assert row.corrected == pytest.approx((across - row.half_chance) / room)
            checked += 1
    assert checked > 40


def test_adjusted_p_is_over_all_pairs(pairs: list[PairRow]) -> None:
    assert [row.adjusted_p for row in pairs] == pytest.approx(false_discovery_control([row.p for row in pairs]))


def test_near_duplicates_are_those_of_the_rows_located_on(pairs: list[PairRow], out: Path) -> None:
    def drawn(name: str, seed: int) -> Any:
        return load_prompts(out.parent / f"{name}.jsonl", limit=ROWS, seed=seed)

    for row in pairs:
        found = near_duplicates(drawn(row.set_first, row.seed_first), drawn(row.set_second, row.seed_second))
        shared = len({pair.first for pair in found})
        assert row.near_duplicates == shared
        if row.comparison == "methods":
            assert shared == ROWS
        assert (shared == 0) == (row.comparison == "sets")


def test_refinement_is_decomposed(out: Path, pairs: list[PairRow], world: World) -> None:
    rows = read_rows(out, "refinement", RefinementRow)
    assert len(rows) == 4 * 3 * 2 * 2  # methods with sizes, pairs, seeds, refinements
    corrected = {
        (row.method_first, row.size_first, row.set_first, row.set_second, row.seed_first, row.refinement): row.corrected
        for row in of_sets(pairs)
    }
    for row in rows:
        place = (row.method, row.size, row.set_first, row.set_second, row.seed)
        assert row.corrected == corrected[*place, "none"]
        assert row.refined_corrected == corrected[*place, row.refinement]
        s1, s2 = (world.weights(row.method, row.size, name, row.seed, "whole", "none") for name in place[2:4])
        r1, r2 = (world.weights(row.method, row.size, name, row.seed, "whole", row.refinement) for name in place[2:4])
        useful = world.useful(row.method, row.seed)
        assert (row.iou, row.refined_iou) == (iou(s1, s2), iou(r1, r2))
        assert (row.weights_first, row.refined_weights_second) == (len(s1), len(r2))
        assert row.change == pytest.approx(row.refined_iou - row.iou)
        assert row.mechanical + row.remaining == pytest.approx(row.change)
        if row.refinement == "refill":
            assert row.mechanical == pytest.approx(row.refined_chance - row.chance)
            assert row.shared_in_utility is row.expected_iou is None
            if row.method != "neurons":
                assert len(r1) == len(s1)
            continue
        assert r1 == s1 - useful
        a, b = len(s1 & s2 & useful) / len(s1 & s2), len((s1 | s2) & useful) / len(s1 | s2)
        assert (row.shared_in_utility, row.either_in_utility) == pytest.approx((a, b))
        assert row.refined_iou == pytest.approx(row.iou * (1 - a) / (1 - b))
        assert row.first_in_utility == pytest.approx(len(s1 & useful) / len(s1))
        expected = useful_share = 0.0
        shared = either = 0.0
        for name in {name for name, _ in s1 | s2}:
            mine, theirs, taken = ({place for place in one if place[0] == name} for one in (s1, s2, useful))
            left = 1 - len((mine | theirs) & taken) / len(mine | theirs)
            shared += len(mine & theirs) * left
            either += len(mine | theirs) * left
            size = world.regions[row.method, row.size, "locks", row.seed, "whole", "none"].layout[name].numel
            useful_share += len(mine) * len(taken) / size
        expected = shared / either
        assert row.expected_iou == pytest.approx(expected)
        assert row.mechanical == pytest.approx(expected - row.iou)
        assert row.first_in_utility_chance == pytest.approx(useful_share / len(s1))


def test_kway_rows_hold_all_subsets(out: Path, world: World) -> None:
    rows = read_rows(out, "kway", KWayRow)
    assert len(rows) == 4 * 2 * 3 * 2  # methods with sizes, seeds, refinements, k of 2 and 3
    for row in rows:
        sets = [world.weights(row.method, row.size, name, row.seed, "whole", row.refinement) for name in SAFETY]
        chosen = list(itertools.combinations(sets, row.regions))
        ious = [len(set.intersection(*some)) / len(set.union(*some)) for some in chosen]
        assert (row.sets, row.subsets) == (3, len(chosen))
        assert row.iou == pytest.approx(np.mean(ious))
        assert (row.lowest, row.highest) == (min(ious), max(ious))


def test_the_summary_has_means_over_pairs_of_sets(out: Path, pairs: list[PairRow]) -> None:
    found = json.loads((out / "study.json").read_text())
    assert found["tables"] == {"cells": 378, "pairs": len(pairs), "kway": 48, "refinement": 48}
    assert len(found["summary"]) == 4 * 3
    for one in found["summary"]:
        members = [
            row
            for row in of_sets(pairs)
            if (row.method_first, row.size_first, row.refinement) == (one["method"], one["size"], one["refinement"])
        ]
        assert one["pairs"] == len(members) == 6
        assert one["iou"] == pytest.approx(np.mean([row.iou for row in members]))
        assert one["lowest_iou"] == min(row.iou for row in members)
        known = [row.corrected for row in members if row.corrected is not None]
        assert one["identifiable"] == len(known)
        assert one["corrected"] == (pytest.approx(np.mean(known)) if known else None)
