"""The figures of a page as SVG and PDF for papers: one column wide, on white, with the light colours of the page.

Kaleido draws them, with a Chrome or Chromium of the system. The same artefacts give the same files: random names and
the time of drawing, which differ from call to call, are taken out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any, Literal

from ballast.errors import RunError, UsageError
from ballast.progress import track
from ballast.report.drawing import Figure, figures_in
from ballast.report.page import content, template_text
from ballast.report.read import gather
from ballast.runs import write_bytes

COLUMN = 336  # CSS pixels: 3.5 inches, or 252 points, of which a letter of the axes takes 9
PAPER = {"--canvas": "#ffffff", "--font": "Liberation Sans, Arial, Helvetica, sans-serif"}
FORMATS: tuple[Literal["svg", "pdf"], ...] = ("svg", "pdf")
SECONDS = 60  # that one figure may take
NO_NETWORK = "none://none"  # a proxy of no known kind: the browser, which asks for updates and more, reaches nothing
# Plotly names parts of a drawing at random; with a generator that begins anew in every figure, names are the same.
SEEDED = "<script>{ let state = 1; Math.random = () => (state = state * 16807 % 2147483647) / 2147483647; }</script>"
NO_TIME = b"19700101000000"


def write_figures(run_dir: Path | str, folder: Path | str) -> list[Path]:
    """Write every figure of a run's page as `NAME.svg` and `NAME.pdf`.

    Args:
        run_dir: As for `write_report`.
        folder: Made if it is missing; files of the same name are replaced.

    Returns:
        The files, in the order of the page.

    Raises:
        UsageError: Kaleido is not installed.
        RunError: There is no browser or it fails, or as for `write_report`.
    """
    figures = list(figures_in(content(gather(Path(run_dir)))))
    with ThreadPoolExecutor(1) as thread:  # a thread has no event loop yet, which a notebook has
        drawn = thread.submit(copy_context().run, asyncio.run, _drawn(figures)).result()
    written = []
    for (figure, format_), data in drawn.items():
        written.append(Path(folder) / f"{figure}.{format_}")
        write_bytes(written[-1], data)
    return written


def for_paper(figure: Figure) -> dict[str, Any]:
    """Plotly's JSON of a figure with every colour resolved, one column wide."""
    root = template_text("style.css").partition("}")[0]
    variables = dict(re.findall(r"(--[\w-]+):\s*([^;]+);", root)) | PAPER
    spec: dict[str, Any] = _resolved(figure.spec, variables)
    return {"data": spec["data"], "layout": {**spec["layout"], "width": COLUMN}}


def _resolved(value: Any, variables: dict[str, str]) -> Any:
    """A copy in which `var(--name)` is what the style sheet says."""
    if isinstance(value, str) and (name := re.fullmatch(r"var\((--[\w-]+)\)", value)):
        return variables[name[1]]
    if isinstance(value, (list, tuple)):
        return [_resolved(one, variables) for one in value]
    if isinstance(value, dict):
        return {key: _resolved(one, variables) for key, one in value.items()}
    return value


async def _drawn(figures: Sequence[Figure]) -> dict[tuple[str, str], bytes]:
    """The files by name and format."""
    try:
        import kaleido
        from kaleido import errors
    except ImportError as error:
        raise UsageError(
            "Figures for papers need an extra package; run `pip install 'ballast-llm[figures]'`."
        ) from error
    page = kaleido.PageGenerator(mathjax=False)
    page.header += SEEDED
    try:
        async with kaleido.Kaleido(n=1, timeout=SECONDS, page_generator=page, proxy_server=NO_NETWORK) as browser:
            return {
                (figure.name, format_): _timeless(await browser.calc_fig(for_paper(figure), {"format": format_}))
                for figure in track(figures, "draw figures")
                for format_ in FORMATS
            }
    except errors.ChromeNotFoundError as error:
        raise RunError(
            "Figures for papers are drawn by Chrome or Chromium, and none was found; install one (Debian: apt-get "
            "install chromium) or name its program in BROWSER_PATH."
        ) from error
    except (
        errors.BrowserClosedError,
        errors.BrowserFailedError,
        errors.JavascriptError,
        errors.KaleidoError,
        TimeoutError,
    ) as error:
        raise RunError(
            f"The browser could not draw the figures ({error}); try again or name another browser in BROWSER_PATH."
        ) from error


def _timeless(data: bytes) -> bytes:
    """A PDF without the time at which it was made, a number of as many digits; an SVG has none."""
    return re.sub(rb"(?<=\(D:)\d{14}", NO_TIME, data)
