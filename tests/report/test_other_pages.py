"""The pages of an overlap and of a validation, as HTML."""

from __future__ import annotations

from pathlib import Path

import pytest

from ballast.report import write_report
from ballast.runs import read_json, write_json
from tests.report.artefacts import make_region
from tests.report.overlaps import make_overlap, make_windows
from tests.report.test_page import Reader, read
from tests.report.test_words import plain
from tests.report.validations import HARMFUL, MODEL, make_validation

HOSTILE = '</script><img src=x onerror="alert(1)">{{ 7 * 7 }}'


@pytest.fixture(scope="module")
def overlap(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return read(write_report(make_overlap(tmp_path_factory.mktemp("overlap"))))


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return read(write_report(make_validation(tmp_path_factory.mktemp("validation"))))


def figures(reader: Reader) -> set[str]:
    return {name.removeprefix("figure-") for name in reader.ids() if name.startswith("figure-")}


def test_an_overlap_with_a_ceiling_has_every_section(overlap: Reader) -> None:
    pairs = ("1-2", "1-3", "2-3")
    details = {f"{kind}-{pair}" for kind in ("difference", "parts") for pair in pairs}
    assert figures(overlap) == {"between", "iou", "corrected", "agreement", "convergence"} | details
    sections = {"overlap", "where", "together", "conclusions", "provenance"}
    assert {name for name in overlap.ids() if not name.startswith("figure-")} == sections
    assert not overlap.open


def test_the_tables_of_an_overlap_have_all_pairs(overlap: Reader, tmp_path: Path) -> None:
    text = plain(overlap.text)
    found = read_json(make_overlap(tmp_path) / "overlap.json")
    for pair in found["pairs"]:
        for share in ("iou", "chance", "margin_chance", "size_cap", "macro_iou", "global_chance"):
            assert f"{100 * pair[share]:.1f} %" in text
        assert f"{pair['intersection']:,}" in text
        assert f"{pair['corrected']['corrected']:.2f} [" in text
    for row in found["agreement"]:
        assert f"{row['weights']:,}" in text
    assert text.count("1 between 9 and 9") == 3


def test_two_regions_without_a_ceiling_have_a_short_page(tmp_path: Path) -> None:
    reader = read(write_report(make_overlap(tmp_path, 2, ceiling=False)))
    assert figures(reader) == {"between", "difference-1-2", "parts-1-2"}
    assert "At half the prompts" not in reader.text
    assert "No ceiling was measured" in reader.text
    assert not reader.all_of("select"), "there is nothing to choose"


def test_windows_have_a_picture_and_a_table(tmp_path: Path) -> None:
    reader = read(write_report(make_windows(tmp_path)))
    assert "windows" in figures(reader)
    text = plain(reader.text)
    assert "Chance and p are over all placements of two windows of these lengths." in text
    assert "1 a and 2 b 1 to 3 2 to 4 50.0 %" in text
    assert "1 a and 3 c 1 to 3 0 0.0 %" in text


def test_a_validation_says_its_verdicts_before_all_else(validation: Reader) -> None:
    text = plain(validation.text)
    places = [text.index(part) for part in ("Verdicts", "Necessity is shown (set to 0", "What this says", "Rates")]
    assert places == sorted(places)
    assert {"verdicts", "conclusions", "disturbance-1", "disturbance-4", "provenance"} <= validation.ids()
    assert len(figures(validation)) == 14
    assert not validation.open


def test_the_tables_of_a_validation_have_all_numbers(validation: Reader, tmp_path: Path) -> None:
    text = plain(validation.text).replace("−", "-")
    for dose in read_json(make_validation(tmp_path) / "validate.json")["effects"]:
        for effect in dose["safety"]:
            mean = sum(effect["random"]) / len(effect["random"])
            low, high = min(effect["random"]), max(effect["random"])
            assert f"{100 * mean:.1f} % ({100 * low:.1f} % to {100 * high:.1f} %)" in text
            points = f"{100 * effect['difference']:+.1f}".replace("+0.0", "0.0")
            assert f"{points} [{100 * effect['low']:.1f}, {100 * effect['high']:.1f}]" in text
        for cost in dose["utility"]:
            assert f"{cost['excess']:+.4f} [{cost['low']:.4f}, {cost['high']:.4f}]" in text


def test_names_stay_text(tmp_path: Path, validation: Reader) -> None:
    assert MODEL in validation.text
    assert list(HARMFUL)[1] in validation.text
    make_overlap(tmp_path)
    found = read_json(tmp_path / "overlap.json")
    found["regions"][0]["name"] = HOSTILE
    found["regions"][1]["prompts"]["name"] = HOSTILE
    write_json(tmp_path / "overlap.json", found)
    reader = read(write_report(tmp_path))
    assert reader.text.count(HOSTILE) >= 2
    for one in (reader, validation):
        assert not one.all_of("img")
        assert not one.all_of("i")
        assert len([a for a in one.all_of("script") if a.get("type") != "application/json"]) == 2


@pytest.mark.parametrize("make", [make_overlap, make_validation])
def test_the_same_artefacts_give_the_same_page(tmp_path: Path, make: object) -> None:
    assert callable(make)
    first = write_report(make(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_many_steps_are_counted_and_not_listed(tmp_path: Path) -> None:
    make_overlap(tmp_path, 2, ceiling=False)
    run = read_json(tmp_path / "run.json")
    run["steps"] = {f"half 0-{place}-1": {"state": "done", "seconds": 2.0} for place in range(40)}
    write_json(tmp_path / "run.json", run)
    text = plain(read(write_report(tmp_path)).text)
    assert "40 steps, 1 min 20 s together" in text
    assert "half 0-3-1" not in text


def test_other_pages_have_neither(tmp_path: Path) -> None:
    assert not {"overlap", "verdicts", "conclusions"} & read(write_report(make_region(tmp_path))).ids()
