"""What the browser tests do with a page, and what they ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WIDTHS = {"desktop": 1280, "phone": 390}


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


def unresolved(browser: webdriver.Chrome) -> Any:
    """Ids of figures in which a colour is still the name of a variable."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.drawing')]"
        ".filter((e) => e.innerHTML.includes('var(--')).map((e) => e.id)"
    )


def outside(browser: webdriver.Chrome) -> Any:
    """Parts that end beyond the right edge, and the page if it scrolls sideways."""
    return browser.execute_script(
        "const root = document.documentElement;"
        "const wide = root.scrollWidth > root.clientWidth ? ['the page'] : [];"
        "return wide.concat([...document.querySelectorAll('main figure, main .table, main .panel, main .flip')]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML.slice(0, 80)))"
    )


def misfitting(browser: webdriver.Chrome) -> list[str]:
    """Ids of visible figures whose drawing has not the size of its place."""
    found = []
    for figure in browser.find_elements(By.CSS_SELECTOR, ".drawing"):
        if figure.is_displayed():
            drawing = figure.find_element(By.CSS_SELECTOR, "svg.main-svg").rect
            if any(abs(drawing[side] - figure.rect[side]) > 1 for side in ("width", "height")):
                found.append(str(figure.get_attribute("id")))
    return found
