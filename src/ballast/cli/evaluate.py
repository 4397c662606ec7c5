"""`ballast measure`, `compare` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ballast import pipeline
from ballast.cli.options import Limit, Model, Opening, Out, PatchFile, Seed, opens_models
from ballast.cli.output import comparison_tables, show, summary_tables
from ballast.evaluate import compare as compare_folders
from ballast.evaluate import measure as measure_model
from ballast.evaluate.measure import DEFAULT_JUDGES
from ballast.prompts import load_prompts
from ballast.report import write_figures, write_report


@opens_models
def measure(
    model: Model,
    out: Out,
    safety: Annotated[list[str] | None, typer.Option(help="Harmful prompts; repeat for more sets.")] = None,
    overrefusal: Annotated[list[str] | None, typer.Option(help="Harmless prompts; repeat for more sets.")] = None,
    utility: Annotated[list[str] | None, typer.Option(help="Sets with responses or choices; repeat.")] = None,
    judge: Annotated[list[str] | None, typer.Option(help="Judges; the first one gives the verdicts.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens after which an answer is cut.", min=1)] = 48,
    patch: PatchFile = None,
    limit: Limit = None,
    seed: Seed = 0,
    *,
    opening: Opening,
) -> None:
    """Attack success, over-refusal and utility; without any set, the built-in test sets."""
    lm = opening.model(model, patch)
    named = safety or overrefusal or utility
    sets = {
        "safety": safety or (() if named else pipeline.SAFETY),
        "overrefusal": overrefusal or (() if named else pipeline.OVER_REFUSAL),
        "utility": utility or (() if named else pipeline.UTILITY),
    }
    loaded = {axis: [load_prompts(spec, limit=limit, seed=seed) for spec in specs] for axis, specs in sets.items()}
    summary = measure_model(lm, judges=judge or DEFAULT_JUDGES, max_new_tokens=max_new_tokens, out=out, **loaded)
    show(summary.model_dump(mode="json"), summary_tables(summary), f"Written to {out}")


def compare(
    before: Annotated[Path, typer.Argument(help="Folder of a measurement.")],
    after: Annotated[Path, typer.Argument(help="Folder of another, on the same prompts.")],
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json.")] = None,
) -> None:
    """Compare two measurements prompt by prompt."""
    comparison = compare_folders(before, after, out)
    show(comparison.model_dump(mode="json"), comparison_tables(comparison))


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    figures: Annotated[
        Path | None, typer.Option(help="Also a folder for every figure of the page as SVG and PDF, for papers.")
    ] = None,
) -> None:
    """Write report.html, one page about a run."""
    page = write_report(run)
    drawn = [str(path) for path in write_figures(run, figures)] if figures else []
    text = f"\nFigures: {len(drawn)} files in {figures}" if figures else ""
    show({"report": str(page), "figures": drawn}, (), f"Report: {page}{text}")
