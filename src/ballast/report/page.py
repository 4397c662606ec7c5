"""Put words, tables and figures into one HTML file."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ballast.evaluate.summary import Axis
from ballast.report import figures, formats, overlap_words, tables, validation_words, words
from ballast.report.flips import LONGEST_ANSWER, flipped_sets
from ballast.report.overlap_page import overlap_content
from ballast.report.read import Artefacts, gather
from ballast.report.validation_page import validation_content
from ballast.runs import write_text


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html`, one self-contained page about what a run directory holds.

    The page needs no network and asks for none: scripts, style and data are inside it, and its content security policy
    forbids everything else. The same artefacts give the same page, byte by byte.

    Args:
        run_dir: A directory written by any command; parts that it does not have are left out of the page.

    Returns:
        The path of the page, `report.html` in that directory, written whole or not at all.

    Raises:
        RunError: The folder does not exist, holds nothing to report on, holds a damaged artefact, or cannot be written.
    """
    folder = Path(run_dir)
    page = folder / "report.html"
    write_text(page, render(gather(folder)))
    return page


def render(artefacts: Artefacts) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("ballast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formats.FILTERS)
    scripts = {"plotly_script": get_plotlyjs(), "draw_script": template_text("draw.js")}
    return environment.get_template("report.html.j2").render(
        **{name: Markup(text) for name, text in scripts.items()},  # noqa: S704  (our own code and plotly's)
        script_hashes=[_policy_hash(text) for text in scripts.values()],
        style=Markup(template_text("style.css")),  # noqa: S704
        **content(artefacts),
    )


def content(artefacts: Artefacts) -> dict[str, Any]:
    """Everything the templates show, by the names they use; figures are in the order of the page."""
    region, overlap, validation = artefacts.region, artefacts.overlap, artefacts.validation
    return {
        "artefacts": artefacts,
        "run": artefacts.run,
        **_heading(artefacts),
        "overlap": overlap_content(overlap) if overlap else None,
        "validation": validation_content(validation) if validation else None,
        "axes": [_axis(artefacts, "safety"), _axis(artefacts, "over_refusal")],
        "utility_findings": words.utility_findings(artefacts),
        "flipped_sets": flipped_sets(artefacts),
        "longest_answer": LONGEST_ANSWER,
        "heat_figures": figures.heat_figures(region.cells) if region else [],
        "roles": tables.by_role(region.cells) if region else [],
        "verdict_rows": tables.verdict_rows(artefacts),
        "loss_figure": figures.loss_figure(artefacts),
        "path_figure": figures.path_figure(artefacts),
        "checks": tables.check_rows(artefacts),
    }


def _heading(artefacts: Artefacts) -> dict[str, Any]:
    """Title and first sentences of what the folder is mainly about."""
    if artefacts.overlap is not None:
        return overlap_words.heading(artefacts.overlap)
    if artefacts.validation is not None:
        return validation_words.heading(artefacts.validation)
    return {
        "title": words.model_name(artefacts),
        "opening": words.opening(artefacts),
        "method": words.method(artefacts),
    }


def _axis(artefacts: Artefacts, axis: Axis) -> dict[str, Any]:
    return {
        "name": axis,
        "findings": words.findings(artefacts, axis),
        "figure": figures.rate_figure(artefacts, axis),
    }


def template_text(name: str) -> str:
    """A file that is put into the page as it is."""
    return (files("ballast.report") / "templates" / name).read_text(encoding="utf-8")


def _policy_hash(script: str) -> str:
    """The source expression by which a content security policy allows exactly this script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
