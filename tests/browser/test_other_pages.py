"""The pages of an overlap and of a validation, and figures for papers, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from ballast.report import write_figures, write_report
from tests.browser.driving import WIDTHS, console, misfitting, outside, unresolved, visit
from tests.report.artefacts import make_run
from tests.report.overlaps import make_overlap, make_windows
from tests.report.validations import make_validation

pytestmark = pytest.mark.browser

# The marks that figures must have drawn: CSS selector within the figure and how many there must be.
MARKS = {
    "three": {
        "figure-between": {".scatterlayer .point": 21, ".shapelayer path": 6},
        "figure-iou": {".heatmaplayer image": 2, ".heatmap-label": 6, ".shapelayer path": 5},
        "figure-corrected": {".heatmaplayer image": 2, ".heatmap-label": 6},
        "figure-difference-1-2": {".heatmaplayer image": 1, ".cbaxis text": 3},
        "figure-parts-1-2": {".scatterlayer .point": 20},
        "figure-agreement": {".scatterlayer .js-line": 2},
        "figure-convergence": {".scatterlayer .js-line": 6, ".errorbar path": 9},
    },
    "ten": {"figure-iou": {".heatmap-label": 90}, "figure-between": {".ytick text": 45}},
    "windows": {"figure-windows": {".bars .point path": 3, ".bartext": 3}},
    "validation": {
        "figure-rates-1": {".scatterlayer .point": 59 * 4 + 8, ".errorbar path": 4},
        "figure-degenerate-1": {".scatterlayer .point": 8},
        "figure-rates-2-1": {".scatterlayer .js-line": 6, ".errorbar path": 3, ".scatterlayer .js-fill": 1},
        "figure-utility-2-1": {".errorbar path": 3, ".shapelayer path": 1},
    },
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "three": make_overlap(folder / "three"),
        "ten": make_overlap(folder / "ten", 10),
        "windows": make_windows(folder / "windows"),
        "validation": make_validation(folder / "validation"),
    }
    return {name: write_report(run) for name, run in made.items()}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark")])
@pytest.mark.parametrize("name", MARKS)
def test_every_page_is_drawn_and_fits(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    visit(browser, pages[name], width, scheme)
    for figure, marks in MARKS[name].items():
        for selector, count in marks.items():
            found = browser.find_elements(By.CSS_SELECTOR, f"#{figure} {selector}")
            assert len(found) >= count, (figure, selector)
    assert unresolved(browser) == []
    assert outside(browser) == []
    assert misfitting(browser) == []
    assert console(browser) == []


def test_a_pair_is_drawn_when_it_is_chosen(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    visit(browser, pages["three"], WIDTHS["phone"])
    shown, other = (browser.find_element(By.ID, f"figure-parts-{pair}") for pair in ("1-2", "2-3"))
    assert shown.is_displayed()
    assert not other.is_displayed()
    assert not other.find_elements(By.TAG_NAME, "svg")
    Select(browser.find_element(By.CSS_SELECTOR, "select[data-chooses=pair]")).select_by_index(2)
    assert not shown.is_displayed()
    assert other.is_displayed()
    assert other.find_elements(By.CSS_SELECTOR, ".scatterlayer .point")
    assert misfitting(browser) == []
    assert console(browser) == []


def test_names_in_figures_are_text(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    visit(browser, pages["validation"], WIDTHS["desktop"])
    labels = [note.text for note in browser.find_elements(By.CSS_SELECTOR, "#figure-rates-1 .annotation")]
    assert "attack success, jailbreakbench_harmful <i>" in labels


@pytest.mark.parametrize("make", [make_run, make_windows])
def test_figures_for_papers_are_the_same_every_time(browser: webdriver.Chrome, tmp_path: Path, make: object) -> None:
    assert callable(make)  # `browser` skips where there is none
    run = make(tmp_path / "run")
    files = write_figures(run, tmp_path / "figures")
    assert sorted((tmp_path / "figures").iterdir()) == sorted(files)
    for file in files:
        if file.suffix == ".svg":
            root = ElementTree.fromstring(file.read_bytes())
            assert (root.tag, root.get("width")) == ("{http://www.w3.org/2000/svg}svg", "336")
            assert not root.findall(".//{http://www.w3.org/2000/svg}script")
            background = root.find("{http://www.w3.org/2000/svg}rect")
            assert background is not None
            assert "fill: rgb(255, 255, 255)" in (background.get("style") or "")
        else:
            data = file.read_bytes()
            assert data.startswith(b"%PDF-")
            assert re.search(rb"/MediaBox \[0 0 252 ", data), "3.5 inches"
            assert b"/Font" in data, "text stays text"
    again = write_figures(run, tmp_path / "again")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
