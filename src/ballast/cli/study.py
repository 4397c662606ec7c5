"""`ballast study`: a grid of methods, prompt sets, models and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ballast.cli.options import Out
from ballast.cli.output import percent, show, table
from ballast.errors import UsageError
from ballast.study import Engine, LocalEngine, RayEngine
from ballast.study import study as run_study

SHOWN_FAILURES = 5


def study(
    grid: Annotated[Path, typer.Argument(help="TOML file, see docs/study.md.", metavar="GRID.toml")],
    out: Out,
    workers: Annotated[
        int,
        typer.Option(help="Processes at the same time; a cluster has as many as fit.", min=1),
    ] = 1,
    engine: Annotated[str, typer.Option(help="local, or ray: a cluster (RAY_ADDRESS), else this machine.")] = "local",
    gpus_per_job: Annotated[float, typer.Option(help="With ray: GPUs of a job, such as 0.5.", min=0)] = 0.0,
) -> None:
    """Locate regions for every cell of a grid, compare them, write tables; exit code 1 if a cell failed."""
    found = run_study(grid, out=out, engine=_engine(engine, workers, gpus_per_job))
    show(found, _tables(found), _text(found, out))
    if found["state"] != "done":
        raise typer.Exit(1)


def _engine(name: str, workers: int, gpus_per_job: float) -> Engine:
    if name == "ray":
        return RayEngine(workers, gpus_per_job)
    if name != "local":
        raise UsageError(f"There is no engine {name!r}; use local or ray.")
    if gpus_per_job:
        raise UsageError("Only the engine ray divides GPUs; leave --gpus-per-job out or add --engine ray.")
    return LocalEngine(workers)


def _tables(found: dict[str, Any]) -> list[Table]:
    """The overlap of prompt sets, one table per model."""
    columns = ("method", "refined", "pairs", "IoU, %", "chance, %", "by margins, %", "cap, %", "ceiling, %")
    caption = (
        "Means over pairs of prompt sets [lowest, highest]. Chance: as many weights in every matrix. Ceiling and "
        "corrected: at half the prompts; corrected is shown with the number of pairs in which it can be identified."
    )
    tables = []
    for model in found["models"]:
        rows = [
            (
                row["method"] if row["size"] is None else f"{row['method']} {row['size']:g}",
                row["refinement"],
                str(row["pairs"]),
                percent(row["iou"], row["lowest_iou"], row["highest_iou"]),
                *(percent(row[column]) for column in ("chance", "margin_chance", "size_cap", "ceiling")),
                f"{percent(row['corrected'])} ({row['identifiable']})",
            )
            for row in found["summary"]
            if row["model"] == model
        ]
        if rows:
            tables.append(table(f"Overlap, {model}", (*columns, "corrected, % (n)"), rows, words=2, caption=caption))
    return tables


def _text(found: dict[str, Any], out: Path) -> str:
    cells, failures = found["cells"], found["failures"]
    lines = [f"{row['method']} was left out for {row['model']}: {row['reason']}." for row in found["left_out"]]
    lines += [f"{model} cannot be opened: {error}" for model, error in failures["models"].items()]
    for row in failures["cells"][:SHOWN_FAILURES]:
        place = " ".join(str(row[name]) for name in ("model", "method", "size", "set", "seed", "part", "refinement"))
        lines.append(f"{place}: {row['error']}")
    if len(failures["cells"]) > SHOWN_FAILURES:
        lines.append(f"and {len(failures['cells']) - SHOWN_FAILURES} more cells, see tables/cells.csv.")
    lines += [f"Regions that could not be compared: {row['error']}" for row in failures["comparisons"]]
    if found["state"] != "done":
        lines.append("What failed is tried again by the same command.")
    lines.append(f"{cells.get('done', 0)} of {cells['planned']} cells are done; written to {out}.")
    return "\n".join(lines)
