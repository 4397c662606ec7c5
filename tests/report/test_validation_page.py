"""A validation on the page: its verdicts first, every number where it belongs, and no claim beyond them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ballast.report import validation_words
from ballast.report.drawing import Figure, figures_in
from ballast.report.validation_page import validation_content
from ballast.runs import read_json
from ballast.validate import Validation
from tests.report.test_words import plain
from tests.report.validations import ANSWERS, DOSES, HARMFUL, HARMLESS, MODEL, make_validation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_validation(tmp_path_factory.mktemp("validation"))


@pytest.fixture(scope="module")
def validation(folder: Path) -> Validation:
    return Validation.load(folder)


@pytest.fixture(scope="module")
def figures(validation: Validation) -> dict[str, Figure]:
    found = list(figures_in(validation_content(validation)))
    assert len({figure.name for figure in found}) == len(found)
    return {figure.name: figure for figure in found}


@pytest.fixture(scope="module")
def noise(folder: Path) -> list[dict[str, Any]]:
    return [dose for dose in read_json(folder / "validate.json")["effects"] if dose["intervention"] == "noise"]


def drawn(figure: Figure, row: int = 1) -> dict[str, dict[str, Any]]:
    """The traces of one panel by name; panels are counted by their y axes."""
    axis = "y" if row == 1 else f"y{row}"
    return {trace["name"]: trace for trace in figure.spec["data"] if trace.get("yaxis", "y") == axis}


def percent(shares: list[float]) -> Any:
    return pytest.approx([100 * share for share in shares])


def test_one_dose_has_dots_and_several_have_curves(figures: dict[str, Figure]) -> None:
    curves = [f"rates-2-{place}" for place in (1, 2, 3, 4)] + ["utility-2-1"]
    dots = [f"{kind}-{family}" for family in (1, 3, 4) for kind in ("rates", "degenerate", "utility")]
    assert sorted(figures) == sorted(curves + dots)


@pytest.mark.parametrize("number", [1, 2])
def test_a_curve_is_the_region_in_the_band_of_random_regions(
    figures: dict[str, Figure], noise: list[dict[str, Any]], number: int
) -> None:
    effects = [dose["safety"][number - 1] for dose in noise]
    panel = drawn(figures[f"rates-2-{number}"])
    region = panel["the region"]
    assert list(region["x"]) == list(DOSES)
    assert list(region["y"]) == percent([effect["region"]["rate"] for effect in effects])
    bars = region["error_y"]
    lows = [y - below for y, below in zip(region["y"], bars["arrayminus"], strict=True)]
    highs = [y + above for y, above in zip(region["y"], bars["array"], strict=True)]
    assert lows == percent([effect["region"]["low"] for effect in effects])
    assert highs == percent([effect["region"]["high"] for effect in effects])
    assert list(panel["smallest random"]["y"]) == percent([min(effect["random"]) for effect in effects])
    assert list(panel["random, smallest to largest"]["y"]) == percent([max(effect["random"]) for effect in effects])
    means = [sum(effect["random"]) / len(effect["random"]) for effect in effects]
    assert list(panel["random, mean"]["y"]) == percent(means)
    assert list(panel["undisturbed"]["y"]) == percent([effect["undisturbed"]["rate"] for effect in effects])
    below = drawn(figures[f"rates-2-{number}"], 2)
    assert list(below["the region"]["y"]) == percent([effect["degenerate"] for effect in effects])
    assert list(below["random, mean"]["y"]) == percent([effect["random_degenerate"] for effect in effects])


def test_over_refusal_has_curves_of_its_own(figures: dict[str, Figure], noise: list[dict[str, Any]]) -> None:
    effects = [dose["over_refusal"][0] for dose in noise]
    figure = figures["rates-2-3"]
    assert figure.description == f"Over-refusal on {next(iter(HARMLESS))} over the doses"
    assert list(drawn(figure)["the region"]["y"]) == percent([effect["region"]["rate"] for effect in effects])


def test_the_cost_is_drawn_with_its_margin(figures: dict[str, Figure], noise: list[dict[str, Any]]) -> None:
    effects = [dose["utility"][0] for dose in noise]
    figure = figures["utility-2-1"]
    assert list(drawn(figure)["the region"]["y"]) == [effect["region"] for effect in effects]
    cost = drawn(figure, 2)["the region"]
    assert list(cost["y"]) == [effect["excess"] for effect in effects]
    highs = [y + above for y, above in zip(cost["y"], cost["error_y"]["array"], strict=True)]
    assert highs == pytest.approx([effect["high"] for effect in effects])
    [margin] = [shape for shape in figure.spec["layout"]["shapes"] if shape["yref"] == "y2"]
    assert (margin["y0"], margin["y1"]) == (0.1, 0.1)


def test_doses_are_drawn_in_their_order_however_they_were_given(tmp_path: Path) -> None:
    unordered = Validation.load(make_validation(tmp_path, noise=(0.38, 0.05), ablate=False, transplant=False))
    by_name = {figure.name: figure for figure in figures_in(validation_content(unordered))}
    region = drawn(by_name["rates-1-1"])["the region"]
    rates = {dose.dose: 100 * (dose.safety[0].region.rate or 0) for dose in unordered.effects}
    assert list(zip(region["x"], region["y"], strict=True)) == [(0.05, rates[0.05]), (0.38, rates[0.38])]
    lows = {dose.dose: 100 * (dose.safety[0].region.low or 0) for dose in unordered.effects}
    below = [y - less for y, less in zip(region["y"], region["error_y"]["arrayminus"], strict=True)]
    assert below == pytest.approx([lows[0.05], lows[0.38]])


def test_dots_are_the_region_among_all_random_regions(figures: dict[str, Figure], validation: Validation) -> None:
    [ablation] = [dose for dose in validation.effects if dose.intervention == "ablate"]
    random, undisturbed, region = figures["rates-1"].spec["data"]
    effects = [*ablation.safety, *ablation.over_refusal]
    assert list(random["x"]) == pytest.approx([100 * rate for effect in effects for rate in effect.random])
    assert list(region["x"]) == pytest.approx([100 * (effect.region.rate or 0) for effect in effects])
    assert list(undisturbed["x"]) == pytest.approx([100 * (effect.undisturbed.rate or 0) for effect in effects])
    assert len({*zip(random["x"], random["y"], strict=True)}) > len({*random["x"]}), "equal dots are moved apart"
    assert all(abs(y - round(y)) < 0.25 for y in random["y"]), "no dot leaves its row"
    names = [note["text"] for note in figures["rates-1"].spec["layout"]["annotations"]]
    assert "attack success, jailbreakbench_harmful &lt;i&gt;" in names
    assert "over-refusal, xstest_safe" in names


def test_sufficiency_counts_refusals(figures: dict[str, Figure]) -> None:
    names = [note["text"] for note in figures["rates-4"].spec["layout"]["annotations"]]
    assert f"refusal, {next(iter(HARMFUL))}" in names


def test_the_opening_counts_what_is_shown(validation: Validation) -> None:
    assert plain(" ".join(validation_words.opening(validation))) == (
        f"Ballast disturbed a region of 1,061,683 weights of {MODEL} in memory, and 59 random regions with as many "
        f"weights in every matrix. That {MODEL} needs the region for its refusals is shown by 6 of 6 tests. That the "
        "region brings refusals into base is shown by none of 2 tests. A test is one way of disturbing, on one set of "
        "harmful prompts."
    )


def test_verdicts_are_the_sentences_of_the_validation(validation: Validation) -> None:
    found = validation_words.verdicts(validation)
    assert [verdict.sentence for verdict in found] == [one.sentence for one in validation.findings]
    assert [verdict.shown for verdict in found] == [True] * 6 + [False] * 2


def limits(folder: Path, **changes: Any) -> str:
    return " ".join(validation_words.limits(Validation.load(make_validation(folder, **changes))))


def test_what_is_not_shown_is_not_called_absent(tmp_path: Path, validation: Validation) -> None:
    both = " ".join(validation_words.limits(validation))
    assert "Not shown is not shown to be absent" in both
    assert "Sufficiency depends on the other model" in both
    assert "no corrected p is below" not in both
    shown = limits(tmp_path, transplant=False)
    assert "Not shown is not shown to be absent" not in shown
    assert "Sufficiency" not in shown
    assert "lose at most 0.1 nats per token more than with random regions" in shown


def test_too_few_random_regions_are_named_with_the_smallest_p(tmp_path: Path) -> None:
    """Three doses and 20 random regions: Holm's smallest p is 3 / 21 = 0.14; one dose has 1 / 21 = 0.048."""
    said = limits(tmp_path, random_regions=20)
    assert "With 20 random regions and 3 doses of noise no corrected p is below 0.14, so nothing can be shown" in said
    assert "1 doses" not in said


def test_unknown_prompts_are_named(tmp_path: Path, validation: Validation) -> None:
    unknown = limits(tmp_path, held_out=False)
    assert "It is not known which prompts the region was located on (my_prompts)" in unknown
    assert "was located on other prompts than these" in " ".join(validation_words.limits(validation))


def test_few_prompts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HARMFUL, next(iter(HARMFUL)), 5)
    assert f"{next(iter(HARMFUL))} has fewer than 6 scored prompts" in limits(tmp_path)


def test_utility_is_named_by_its_set(figures: dict[str, Figure]) -> None:
    assert figures["utility-2-1"].description == f"Ordinary answers ({ANSWERS}) over the doses"
