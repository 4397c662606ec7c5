"""`ballast overlap`: regions beside what chance and noise allow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ballast.cli.options import Opening, Seed, opens_models
from ballast.cli.output import percent, show, table
from ballast.locate import overlap_report
from ballast.locate.halves import SPLITS
from ballast.prompts import load_prompts
from ballast.regions import RegionFile
from ballast.regions.overlap import DRAWS


@opens_models
def overlap(
    regions: Annotated[list[Path], typer.Argument(help="Two or more region files.")],
    out: Annotated[Path | None, typer.Option(help="Folder for overlap.json.")] = None,
    ceiling: Annotated[
        str | None,
        typer.Option(help="The model: locate again on halves of the prompts, for ceiling and corrected IoU."),
    ] = None,
    splits: Annotated[int, typer.Option(help="Random halvings of each prompt set.", min=1)] = SPLITS,
    resamples: Annotated[
        int, typer.Option(help="Halvings with prompts drawn again, for an interval; at least 2.", min=0)
    ] = 0,
    sizes: Annotated[
        list[int] | None,
        typer.Option(help="Also locate again on disjoint samples of so many prompts; repeat for more sizes.", min=1),
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="A set that a region was located on, if it was read from a file; repeat.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Shuffles of the permutation test.", min=1)] = DRAWS,
    other_weights: Annotated[
        bool, typer.Option("--other-weights", help="Also compare regions located on different weights.")
    ] = False,
    seed: Seed = 0,
    *,
    opening: Opening,
) -> None:
    """Intersection over union of regions, beside chance, the size cap and, if asked for, the same-data ceiling."""
    files = {str(path): RegionFile.open(path) for path in regions}
    sets = [load_prompts(spec) for spec in prompts or []]
    lm = opening.model(ceiling) if ceiling else None
    report = overlap_report(
        files,
        prompts=sets,
        ceiling=lm,
        splits=splits,
        resamples=resamples,
        sizes=sizes or (),
        draws=draws,
        seed=seed,
        other_weights=other_weights,
        out=out,
    )
    show(report, overlap_tables(report), f"Written to {out / 'overlap.json'}" if out else "")


def overlap_tables(report: dict[str, Any]) -> list[Table]:
    """The tables of one comparison."""
    names = [row["name"] for row in report["regions"]]

    def pair(row: dict[str, Any]) -> str:
        return f"{names[row['first']]} and {names[row['second']]}"

    cells, corrected = [], []
    for row in report["pairs"]:
        units = row["units"]
        for of, found in (("weights", row), (f"{units['granularity']}s" if units else "", units)):
            if found:
                shares = (percent(found.get(share)) for share in ("iou", "chance", "margin_chance", "size_cap"))
                cells.append((pair(row), of, *shares, f"{found['p']:.2g}", f"{found['intersection']:,}"))
        if "corrected" in row:
            numbers = row["corrected"]
            value = numbers["corrected"]
            corrected.append(
                (
                    pair(row),
                    *(percent(numbers[share]) for share in ("iou", "chance", "ceiling")),
                    "not identifiable" if value is None else percent(value, numbers["low"], numbers["high"]),
                )
            )
    tables = [
        table(
            "Overlap",
            ("regions", "of", "IoU, %", "chance, %", "by margins, %", "cap, %", "p", "shared"),
            cells,
            words=2,
            caption=_caption(report),
        )
    ]
    if corrected:
        columns = ("regions", "IoU, %", "chance, %", "ceiling, %", "corrected, % [95 %]")
        tables.append(table("Overlap at half the prompts", columns, corrected))
    if "convergence" in report:
        grown = [
            [name, str(row["prompts"]), *(percent(row[share]) for share in ("iou", "lowest", "highest", "chance"))]
            for name, rows in zip(names, report["convergence"], strict=True)
            for row in rows
        ]
        sampled = ("region", "prompts a side", "IoU, %", "lowest, %", "highest, %", "chance, %")
        tables.append(table("Disjoint samples of the prompts", sampled, grown))
    if len(names) > 2 and report["agreement"]:
        agreed = [
            (str(row["at_least"]), f"{row['weights']:,}", f"{row['chance']:,.0f}", percent(row["stability"]))
            for row in report["agreement"]
        ]
        title = f"Agreement of {len(names)} regions"
        tables.append(table(title, ("in at least", "weights", "by chance", "stability, %"), agreed))
    return tables


def _caption(report: dict[str, Any]) -> str:
    """What should be known before the table is read."""
    duplicates = sum(
        row["prompts"]["near_duplicates"]
        for row in report["pairs"]
        if row["prompts"] and not row["prompts"]["same_set"]
    )
    unknown = sum(row["prompts"] is None for row in report["pairs"])
    found = [f"{duplicates} near duplicates between the prompt sets."] if duplicates else []
    if unknown:
        found.append(f"Shared prompts are unknown for {unknown} pairs: give the sets with --prompts.")
    return " ".join(found)
