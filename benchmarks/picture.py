"""Pictures of the documentation: plotly figures photographed in a real browser."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import plotly.graph_objects as go
from results import FOLDER
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

IMAGES = FOLDER.parents[1] / "docs" / "images"


def photograph(figure: go.Figure, name: str) -> None:
    """Write `docs/images/NAME.png`; needs Chromium and its driver, as the browser tests do."""
    options = webdriver.ChromeOptions()
    size = f"{figure.layout.width + 20},{figure.layout.height + 160}"
    for argument in ("--headless=new", "--no-sandbox", f"--window-size={size}"):
        options.add_argument(argument)
    service = Service(shutil.which("chromedriver"))
    with tempfile.TemporaryDirectory() as folder, webdriver.Chrome(options, service) as browser:
        page = Path(folder) / "figure.html"
        figure.write_html(page, config={"displayModeBar": False})
        browser.get(page.as_uri())
        browser.find_element("class name", "plotly-graph-div").screenshot(str(IMAGES / f"{name}.png"))
