"""The report in a real browser: drawn figures, a clean console, no sideways scrolling, hidden answers hidden."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from ballast.report import write_report
from tests.report.artefacts import HARMFUL_ANSWER, NASTY, make_measurement, make_run

pytestmark = pytest.mark.browser

WIDTHS = {"desktop": 1280, "phone": 390}
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
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("run")))


def visit(browser: webdriver.Chrome, page: Path, width: int, scheme: str = "light") -> None:
    """Open the page at a width in CSS pixels and wait until every figure is drawn."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    colours = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", colours)
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda chrome: chrome.find_elements(By.CSS_SELECTOR, "body[data-drawn]"))


def console(browser: webdriver.Chrome) -> list[str]:
    driver: Any = browser  # selenium gives its logs no types
    return [entry["message"] for entry in driver.get_log("browser")]


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
    unresolved = browser.execute_script(
        "return [...document.querySelectorAll('.drawing')]"
        ".filter((e) => e.innerHTML.includes('var(--')).map((e) => e.id)"
    )
    assert unresolved == [], "every colour is resolved"
    assert console(browser) == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_never_scrolls_sideways(browser: webdriver.Chrome, page: Path, width: int) -> None:
    visit(browser, page, width)
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") == 0
    outside = browser.execute_script(
        "return [...document.querySelectorAll('main figure, main .table, main .panel, main .flip')]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_figures_fit_their_panels(browser: webdriver.Chrome, page: Path, width: int) -> None:
    visit(browser, page, width)
    for figure in browser.find_elements(By.CSS_SELECTOR, ".drawing"):
        drawing = figure.find_element(By.CSS_SELECTOR, "svg.main-svg")
        assert drawing.rect["width"] == pytest.approx(figure.rect["width"], abs=1)
        assert drawing.rect["height"] == pytest.approx(figure.rect["height"], abs=1)


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
