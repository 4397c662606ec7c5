from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ballast.report import overlap_words
from ballast.report.overlap_schema import Overlap
from ballast.runs import read_json
from tests.report.overlaps import make_overlap, make_windows
from tests.report.test_words import plain

NUMBERS: dict[str, Any] = {
    "first": 0, "second": 1, "intersection": 300, "union": 1000, "iou": 0.3, "chance": 0.05, "global_chance": 0.01,
    "margin_chance": 0.1, "size_cap": 0.8, "contained": [0.4, 0.5], "macro_iou": 0.28, "excess": 9.0, "p": 0.001,
    "adjusted_p": 0.002, "draws": 1000, "by_layer": [], "by_role": [], "units": None,
    "prompts": {"same_set": False, "near_duplicates": 0, "of": [24, 30]},
}  # fmt: skip
HALF: dict[str, Any] = {
    "iou": 0.25, "chance": 0.05, "ceiling": 0.45, "corrected": 0.5, "low": 0.4, "high": 0.6, "splits": 5,
    "resamples": 20,
}  # fmt: skip
CEILING = {"prompts": 12, "iou": 0.45, "chance": 0.05, "lowest": 0.4, "highest": 0.5, "splits": 5}


PATHS = ("runs/a/region.safetensors", "runs/b/region.safetensors")


def overlap_of(*pairs: dict[str, Any], names: tuple[str, ...] = PATHS, **more: Any) -> Overlap:
    region = {
        "region_id": "0", "model": "toy", "method": "wanda", "granularity": "weight", "prompts": None,
        "weights": 600, "eligible": 9000, "cells": [],
    }  # fmt: skip
    regions = [{"name": name, **region} for name in names]
    of_all = {"regions": len(names), "intersection": 1, "union": 2, "iou": 0.5, "chance": 0.1}
    return Overlap.model_validate(
        {"regions": regions, "pairs": [NUMBERS | pair for pair in pairs], "all": of_all, "agreement": None, **more}
    )


def opening(overlap: Overlap) -> str:
    return plain(" ".join(overlap_words.opening(overlap)))


@pytest.mark.parametrize(
    ("given", "short"),
    [
        (("runs/a/region.safetensors", "runs/b/region.safetensors"), ["a", "b"]),
        (("x/wanda/1/region.safetensors", "x/snip/1/region.safetensors"), ["wanda", "snip"]),
        (("a.safetensors", "b.safetensors"), ["a", "b"]),
        (("region.safetensors", "x/region.safetensors"), ["region", "x/region"]),
        (("a", "b" * 40), ["a", "b" * 19 + "…"]),
    ],
)
def test_names_lose_what_all_have(given: tuple[str, ...], short: list[str]) -> None:
    assert overlap_words.short_names(overlap_of({}, names=given)) == short


def test_a_pair_in_words() -> None:
    assert opening(overlap_of({})) == (
        "Ballast compared 2 regions of toy: how many of their weights are the same. They share 30.0 % of the 1,000 "
        "weights that either holds (IoU); chance is 5.0 %, by rows and columns 10.0 %, and 80.0 % is the most. "
        "That is more than chance (p 0.002) and more than the numbers per row and column give."
    )


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"iou": 0.09}, "That is more than chance (p 0.002) but not more than the numbers per row and column give."),
        ({"adjusted_p": 0.06}, "More than chance is not shown (p 0.06)."),
        ({"iou": 0.04, "adjusted_p": 0.01}, "More than chance is not shown (p 0.01)."),
        ({"corrected": HALF}, "Corrected overlap is 0.50 [0.40, 0.60]."),
        ({"corrected": HALF | {"low": None, "high": None}}, "Corrected overlap is 0.50."),
        (
            {"corrected": HALF | {"corrected": None, "ceiling": 0.06}},
            "Corrected overlap is not identifiable: the ceiling, 6.0 %, is too near to chance, 5.0 %.",
        ),
    ],
)
def test_what_is_not_shown_is_not_claimed(pair: dict[str, Any], said: str) -> None:
    assert opening(overlap_of(pair)).endswith(said)


def test_many_pairs_are_counted_and_their_ends_named() -> None:
    pairs = (
        {"second": 1, "corrected": HALF},
        {"second": 2, "iou": 0.08, "corrected": HALF | {"corrected": 0.2}},
        {"first": 1, "second": 2, "adjusted_p": 0.5, "iou": 0.06, "corrected": HALF | {"corrected": None}},
    )
    assert opening(overlap_of(*pairs, names=("a", "b", "c"), ceilings=[CEILING] * 3)) == (
        "Ballast compared 3 regions of toy: how many of their weights are the same. Of 3 pairs, 2 can be shown to "
        "share more weights than chance within weight matrices (p at most 0.05, corrected for the number of pairs), "
        "and 1 of these more than their numbers per row and column give. IoU goes from 6.0 % (2 b and 3 c, chance "
        "5.0 %) to 30.0 % (1 a and 2 b, chance 5.0 %). Corrected overlap, where 0 is chance and 1 is two halves of "
        "one prompt set, goes from 0.20 to 0.50; for 1 of 3 pairs it is not identifiable."
    )
    none = overlap_of(*({"second": place, "adjusted_p": 0.5} for place in (1, 2)), names=("a", "b", "c"))
    assert "Of 2 pairs, none can be shown to share more weights than chance within weight matrices" in opening(none)
    assert "of these" not in opening(none)


def test_each_pair_has_its_sentence_unless_there_are_too_many() -> None:
    names = ("a", "b", "c", "d", "e")
    assert [row.name for row in overlap_words.findings(overlap_of({}, {"second": 2}, names=names))] == [
        "1 a and 2 b",
        "1 a and 3 c",
    ]
    assert overlap_words.findings(overlap_of({})) == []  # the opening has said it
    many = [{"first": first, "second": second} for first in range(2) for second in range(first + 1, 5)]
    assert overlap_words.findings(overlap_of(*many, names=names)) == []


@pytest.mark.parametrize(
    ("prompts", "said", "cell"),
    [
        (None, "For one pair it is not known whether prompts are shared; name the sets with --prompts.", "not known"),
        (
            {"same_set": True, "near_duplicates": 24, "of": [24, 24]},
            "One pair was located on one prompt set, and can be alike for that reason.",
            "all 24, one set",
        ),
        (
            {"same_set": False, "near_duplicates": 3, "of": [24, 30]},
            "The prompt sets of one pair have near duplicates in common; shared prompts alone make regions alike.",
            "3 between 24 and 30",
        ),
        (
            {"same_set": False, "near_duplicates": 0, "of": [24, 30]},
            "No near duplicates were found between the prompt sets; paraphrases are not looked for.",
            "0 between 24 and 30",
        ),
    ],
)
def test_shared_prompts_are_a_count_and_a_warning(prompts: dict[str, Any] | None, said: str, cell: str) -> None:
    overlap = overlap_of({"prompts": prompts})
    assert said in overlap_words.limits(overlap)
    assert overlap_words.shared_prompts(overlap.pairs[0]) == cell


def test_limits_depend_on_what_was_measured() -> None:
    without = " ".join(overlap_words.limits(overlap_of({})))
    assert "No ceiling was measured" in without
    assert "orders pairs" not in without
    assert "same rows and columns matter" not in without
    assert "One pair is above chance and not above" in " ".join(overlap_words.limits(overlap_of({"iou": 0.09})))
    with_interval = " ".join(overlap_words.limits(overlap_of({"corrected": HALF}, ceilings=[CEILING] * 2)))
    assert "It orders pairs, but it is no share of common weights" in with_interval
    assert "--resamples" not in with_interval
    bare = overlap_of({"corrected": HALF | {"resamples": 0}}, ceilings=[CEILING] * 2)
    assert "so no corrected overlap has an interval" in " ".join(overlap_words.limits(bare))


def test_regions_of_layers_are_also_told_by_layers(tmp_path: Path) -> None:
    """Layers 1 to 3 and 2 to 4 of 6: two of four layers; the other pairs share none."""
    overlap = Overlap.model_validate(read_json(make_windows(tmp_path) / "overlap.json"))
    assert (
        "By layers, none of 3 pairs can be shown to share more than chance (p at most 0.05, not corrected)."
        in opening(overlap)
    )
    [first, *_] = [plain(row.sentence) for row in overlap_words.findings(overlap)]
    assert "By layers it is 50.0 % of 4; chance " in first


def test_the_method_names_shuffles_and_halvings(tmp_path: Path) -> None:
    overlap = Overlap.model_validate(read_json(make_overlap(tmp_path) / "overlap.json"))
    said = " ".join(overlap_words.method(overlap))
    assert "p is from 1,000 shuffles" in said
    assert "2 random halvings of its prompts, 4 on each side." in said


@pytest.mark.parametrize(
    "pair",
    [{"second": 99}, {"first": -1}, {"first": 1}, {"iou": float("nan")}],
)
def test_records_that_do_not_fit_together_are_refused(pair: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        overlap_of(pair)
    with pytest.raises(ValidationError):
        overlap_of({}, convergence=[[]])
    with pytest.raises(ValidationError):
        overlap_of({}, ceilings=[CEILING, CEILING])
    with pytest.raises(ValidationError):
        overlap_of()
