"""The report in a real browser: drawn figures, a clean console, no sideways scrolling, hidden answers hidden."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from ballast.report import write_report
from tests.browser.driving import WIDTHS, console, misfitting, outside, unresolved, visit
from tests.report.artefacts import HARMFUL_ANSWER, NASTY, make_measurement, make_run

pytestmark = pytest.mark.browser

# The marks that each figure must have drawn: CSS selector within the figure and how many there must be.
MARKS = {
    "figure-safety": {".scatterlayer .point": 6, ".errorbar path": 6},
    "figure-over_refusal": {".scatterlayer .point": 6, ".errorbar path": 6},
    "figure-share": {".heatmaplayer image": 1, ".cbaxis text": 3},
    "figure-density": {".heatmaplayer image": 1, ".cbaxis text": 3},
    "figure-loss": {".scatterlayer .js-line": 2},
    "figure-path": {".scatterlayer .point": 6, ".scatterlayer .js-line": 1, ".errorbar path": 2},
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_every_figure_is_drawn(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    visit(browser, page, width, scheme)
    figures = {figure.get_attribute("id"): figure for figure in browser.find_elements(By.CSS_SELECTOR, ".drawing")}
    assert set(figures) == set(MARKS)
    for name, marks in MARKS.items():
        for selector, count in marks.items():
            found = figures[name].find_elements(By.CSS_SELECTOR, selector)
            assert len(found) >= count, (name, selector)
            assert all(mark.rect["width"] + mark.rect["height"] > 0 for mark in found), (name, selector)
    assert unresolved(browser) == [], "every colour is resolved"
    assert console(browser) == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_never_scrolls_sideways(browser: webdriver.Chrome, page: Path, width: int) -> None:
    visit(browser, page, width)
    assert outside(browser) == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_figures_fit_their_panels(browser: webdriver.Chrome, page: Path, width: int) -> None:
    visit(browser, page, width)
    assert misfitting(browser) == []


def test_harmful_answers_are_hidden_until_clicked(browser: webdriver.Chrome, page: Path) -> None:
    visit(browser, page, WIDTHS["desktop"])
    beginning = HARMFUL_ANSWER[:60]
    assert beginning not in browser.find_element(By.TAG_NAME, "body").text
    answer = browser.find_element(By.CSS_SELECTOR, ".flip.safety details")
    quote = answer.find_element(By.TAG_NAME, "blockquote")
    assert not quote.is_displayed()
    answer.find_element(By.TAG_NAME, "summary").click()
    assert quote.is_displayed()
    assert len(quote.text) <= 200


def test_a_prompt_with_markup_is_shown_and_not_run(browser: webdriver.Chrome, page: Path) -> None:
    visit(browser, page, WIDTHS["desktop"])
    assert browser.title == "Ballast report: SmolLM2-135M-Instruct (fixture)"
    prompts = browser.find_elements(By.CSS_SELECTOR, ".flip .prompt")
    assert NASTY in [prompt.get_attribute("textContent") for prompt in prompts]


def test_nothing_is_fetched(browser: webdriver.Chrome, page: Path) -> None:
    visit(browser, page, WIDTHS["desktop"])
    assert browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)") == []


def test_a_page_of_one_measurement_is_drawn_too(browser: webdriver.Chrome, tmp_path: Path) -> None:
    visit(browser, write_report(make_measurement(tmp_path)), WIDTHS["phone"])
    assert len(browser.find_elements(By.CSS_SELECTOR, "#figure-safety .scatterlayer .point")) == 3
    assert console(browser) == []
