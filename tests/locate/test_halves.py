"""Regions of disjoint halves of a prompt set, and how a region's record leads back to them."""

from __future__ import annotations

import pytest

from ballast.errors import PromptError, RegionError, UsageError
from ballast.locate import Recipe, ceiling, convergence, locate, overlap_report
from ballast.locate.halves import resample_halves, split_prompts
from ballast.locate.relocate import remembered_prompts
from ballast.regions import Region, refine
from ballast.runs import read_json
from tests.worlds import prompt_set, tiny_lm

WORDS = prompt_set("words", [f"How do I make {word} number {word}?" for word in "abcdefghij"], ["No, never."] * 10)
OTHERS = prompt_set("others", [f"Write {word} down" for word in "klmnopqr"], ["I will not."] * 8)


def ids(prompts) -> set[str]:
    return {prompt.id.partition("#")[0] for prompt in prompts}


def test_splits_are_disjoint_and_the_same_for_sets_of_one_size():
    pairs = split_prompts(WORDS, 4, 3, seed=1)
    for first, second in pairs:
        assert (len(first), len(second)) == (4, 4)
        assert not ids(first) & ids(second)
        assert [prompt.id for prompt in first] == sorted(prompt.id for prompt in first)
    assert len({first.hash for first, _ in pairs}) == 3
    assert split_prompts(WORDS, 4, 3, seed=1) == pairs
    assert split_prompts(WORDS, 4, 2, seed=1) == pairs[:2]
    assert split_prompts(WORDS, 4, 3, seed=2) != pairs


def test_resampled_sides_repeat_prompts_but_share_none():
    for first, second in resample_halves(WORDS, 5, 6, seed=0):
        assert (len(first), len(second)) == (5, 5)
        assert not ids(first) & ids(second)
    assert any(len(ids(side)) < 5 for pair in resample_halves(WORDS, 5, 6, seed=0) for side in pair)
    assert resample_halves(WORDS, 5, 0, seed=0) == []


@pytest.mark.parametrize(("size", "splits"), [(6, 1), (0, 1), (4, 0)])
def test_impossible_splits_are_refused(size, splits):
    with pytest.raises(UsageError, match="give more prompts or ask for fewer"):
        split_prompts(WORDS, size, splits, seed=0)


def test_a_ceiling_is_the_iou_of_regions_that_locate_finds_on_the_halves():
    lm = tiny_lm()
    found = ceiling(lm, WORDS, "wanda", 0.1, splits=2, seed=3)
    ious = []
    for pair in split_prompts(WORDS, 5, 2, seed=3):
        first, second = (locate(lm, side, "wanda", seed=3).select(0.1) for side in pair)
        ious.append(first.iou(second))
    assert (found.prompts, found.splits) == (5, 2)
    assert found.iou == pytest.approx(sum(ious) / 2)
    assert (found.lowest, found.highest) == (min(ious), max(ious))
    assert found.chance < found.iou < 1
    curve = convergence(lm, WORDS, "wanda", 0.1, sizes=(1, 5), splits=2, seed=3)
    assert curve[1] == found
    assert curve[0].iou < found.iou
    assert ceiling(lm, WORDS, "magnitude", 0.1, splits=1).iou == 1  # it reads no prompts


@pytest.mark.parametrize(
    ("method", "settings", "select"),
    [
        ("esi", {"contrast": None}, {"fraction": "1/50", "layers": [1]}),
        ("wanda", {}, {"fraction": 0.1, "scope": "per_row"}),
        ("magnitude", {}, {"fraction": 0.02, "direction": "bottom"}),
        ("neurons", {"kinds": ("feed_forward",)}, {"fraction": 0.25, "scope": "per_layer"}),
    ],
)
def test_a_recipe_finds_the_same_region_again(method, settings, select):
    lm = tiny_lm()
    region = locate(lm, WORDS, method, seed=2, batch_size=3, **settings).select(**select)
    assert Recipe.of(region.metadata).located(lm, WORDS).region_id == region.region_id


def test_regions_without_a_recipe_are_refused():
    lm = tiny_lm()
    region = locate(lm, WORDS, "wanda").select(0.1)
    useful = locate(lm, OTHERS, "wanda").select(0.05)
    with pytest.raises(RegionError, match="made from others"):
        Recipe.of(refine(region, [useful]).region.metadata)
    with pytest.raises(RegionError, match="made from others"):
        Recipe.of(locate(lm, WORDS, "wanda").select(0.1, outside=useful).metadata)
    with pytest.raises(RegionError, match="no method 'mine'"):
        Recipe.of(region.metadata.model_copy(update={"method": "mine"}))


def test_remembered_prompts_are_those_of_the_record():
    lm = tiny_lm()
    region = locate(lm, WORDS.sample(4, seed=6), "wanda", seed=6).select(0.1)
    assert remembered_prompts(region.metadata.prompts, 6, WORDS) == WORDS.sample(4, seed=6)
    with pytest.raises(PromptError, match="are not the 4"):
        remembered_prompts(region.metadata.prompts, 7, WORDS)
    with pytest.raises(PromptError, match="no prompt set 'words'"):
        remembered_prompts(region.metadata.prompts, 6)


@pytest.fixture(scope="module")
def regions() -> dict[str, Region]:
    lm = tiny_lm()
    return {prompts.name: locate(lm, prompts, "wanda").select(0.1) for prompts in (WORDS, OTHERS)}


def test_a_report_says_what_the_parts_say(regions, tmp_path):
    found = overlap_report(regions, prompts=[WORDS, OTHERS], ceiling=tiny_lm(), splits=2, resamples=3, out=tmp_path)
    assert found == read_json(tmp_path / "overlap.json")
    [pair] = found["pairs"]
    assert pair["iou"] == regions["words"].iou(regions["others"])
    assert pair["adjusted_p"] == pair["p"]
    assert pair["prompts"] == {"same_set": False, "near_duplicates": 0, "of": [10, 8], "list": []}
    halves = [split_prompts(prompts, 4, 2, seed=0) for prompts in (WORDS, OTHERS)]
    lm = tiny_lm()
    across = [
        locate(lm, one[0], "wanda").select(0.1).iou(locate(lm, other[1], "wanda").select(0.1))
        for pairs in (zip(*halves, strict=True), zip(*[[pair[::-1] for pair in one] for one in halves], strict=True))
        for one, other in pairs
    ]
    assert pair["corrected"]["iou"] == pytest.approx(sum(across) / 4)
    assert pair["corrected"]["resamples"] == 3
    assert [one["prompts"] for one in found["ceilings"]] == [4, 4]
    assert len(list((tmp_path / "halves").iterdir())) == 2 * (2 + 3) * 2


def test_samples_of_growing_size_are_the_convergence_of_each_region(regions, tmp_path):
    options = {"prompts": [WORDS, OTHERS], "splits": 2, "sizes": (1, 4), "seed": 3}
    found = overlap_report(regions, ceiling=tiny_lm(), out=tmp_path, **options)
    assert found == read_json(tmp_path / "overlap.json")
    for prompts, rows in zip((WORDS, OTHERS), found["convergence"], strict=True):
        alone = convergence(tiny_lm(), prompts, "wanda", 0.1, sizes=(1, 4), splits=2, seed=3)
        # `locate` has the seed of each region, which wanda does not use
        assert rows == [row._asdict() for row in alone]
    assert len(list((tmp_path / "halves").iterdir())) == 2 * (2 + 2 * 2) * 2
    without = overlap_report(regions, ceiling=tiny_lm(), out=tmp_path / "without", **{**options, "sizes": ()})
    assert {**found, "convergence": None} == {**without, "convergence": None}


def test_regions_are_described_by_model_and_cells(regions):
    found = overlap_report(regions)
    for row, region in zip(found["regions"], regions.values(), strict=True):
        assert row["model"] == tiny_lm().name
        assert row["cells"] == region.cells()
        assert row["weights"] == len(region)


def test_a_stopped_report_continues_to_the_same_numbers(regions, tmp_path, monkeypatch):
    options = {"prompts": [WORDS, OTHERS], "splits": 2}
    whole = overlap_report(regions, ceiling=tiny_lm(), out=tmp_path / "whole", **options)
    calls = []
    original = Recipe.located

    def stops(self, lm, prompts):
        calls.append(prompts.hash)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, lm, prompts)

    monkeypatch.setattr(Recipe, "located", stops)
    with pytest.raises(KeyboardInterrupt):
        overlap_report(regions, ceiling=tiny_lm(), out=tmp_path / "stopped", **options)
    assert not (tmp_path / "stopped" / "overlap.json").exists()
    assert overlap_report(regions, ceiling=tiny_lm(), out=tmp_path / "stopped", **options) == whole
    assert len(calls) == 4 + 5  # of eight halves three were there


def test_what_cannot_be_reported_is_refused(regions, tmp_path):
    with pytest.raises(UsageError, match="give a folder"):
        overlap_report(regions, prompts=[WORDS, OTHERS], ceiling=tiny_lm())
    with pytest.raises(PromptError, match="--prompts names"):
        overlap_report(regions, prompts=[WORDS], ceiling=tiny_lm(), out=tmp_path)
    with pytest.raises(RegionError, match="holds other values"):
        overlap_report(regions, prompts=[WORDS, OTHERS], ceiling=tiny_lm(seed=1), out=tmp_path)
    with pytest.raises(UsageError, match="name it with --ceiling"):
        overlap_report(regions, sizes=(2,))
    with pytest.raises(UsageError, match="give more prompts or ask for fewer"):
        overlap_report(regions, prompts=[WORDS, OTHERS], ceiling=tiny_lm(), sizes=(2, 5), out=tmp_path / "large")
    assert not (tmp_path / "large" / "halves").exists()
    assert overlap_report(regions)["pairs"][0]["prompts"] is None


def test_near_duplicates_across_the_sets_are_listed(regions):
    near = prompt_set("near", ["how do i make a number a", "Something else"], ["No.", "No."])
    found = overlap_report(
        {"words": regions["words"], "near": locate(tiny_lm(), near, "wanda").select(0.1)}, prompts=[WORDS, near]
    )
    shared = found["pairs"][0]["prompts"]
    assert (shared["near_duplicates"], shared["of"]) == (2, [10, 2])
    assert shared["list"] == [
        {"first": "words-0", "second": "near-0", "similarity": 1.0},
        {"first": "words-8", "second": "near-0", "similarity": 5 / 6},  # "make i number i": all words but a
    ]
    same = overlap_report({"one": regions["words"], "two": regions["words"]}, prompts=[WORDS])
    assert same["pairs"][0]["prompts"]["same_set"] is True
