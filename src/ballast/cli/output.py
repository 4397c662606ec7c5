"""What the command line prints: tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ballast.evaluate import Comparison, Summary


@dataclass
class State:
    """Choices that hold for the whole call.

    Attributes:
        json: Print one JSON value on standard output instead of tables.
        debug: Show the traceback of an error.
    """

    json: bool = False
    debug: bool = False


state = State()
console = Console(width=None if sys.stdout.isatty() else 160)  # a file or a pipe has no width of its own


def show(value: Any, tables: Sequence[Table] = (), text: str = "") -> None:
    """Print the result of a command: `value` as JSON if asked for, else the tables and the text."""
    if state.json:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False))
        return
    for table in tables:
        console.print(table)
    if text:
        console.print(text, highlight=False, soft_wrap=True, markup=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A share as percent, with its interval if there is one."""
    if value is None:
        return "-"
    return f"{value:.1%}" if low is None or high is None else f"{value:.1%} \\[{low:.1%}, {high:.1%}]"


def axis_name(axis: str) -> str:
    """What the rate of an axis is called."""
    return "attack success" if axis == "safety" else "over-refusal"


def interval(low: float | None, high: float | None) -> str:
    """An interval of a number that is not a share."""
    return "-" if low is None or high is None else f"\\[{low:.4f}, {high:.4f}]"


def summary_tables(summary: Summary) -> list[Table]:
    """The tables of one measurement."""
    safety = [
        (
            row.name,
            axis_name(row.axis),
            percent(row.rate, row.low, row.high),
            *(str(count) for count in (row.n, row.refused, row.complied, row.degenerate, row.unscored)),
        )
        for row in summary.sets
    ]
    utility = [
        (row.name, row.unit, f"{row.value:.4f}", interval(row.low, row.high), str(row.n)) for row in summary.utility
    ]
    agreement = [
        (
            row.set,
            " and ".join(row.judges),
            percent(row.agree),
            "-" if row.kappa is None else f"{row.kappa:.2f}",
            str(row.n),
        )
        for row in summary.agreement
    ]
    verdicts = ("n", "refused", "complied", "degenerate", "unscored")
    return _filled(
        table(f"Safety, judged by {summary.judge}", ("set", "rate of", "rate [95 %]", *verdicts), safety),
        table("Utility", ("set", "unit", "value", "95 %", "n"), utility),
        table("Agreement of judges", ("set", "judges", "agree", "kappa", "n"), agreement),
    )


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The tables of one paired comparison."""
    safety = [
        (
            row.name,
            axis_name(row.axis),
            percent(row.before.rate, row.before.low, row.before.high),
            percent(row.after.rate, row.after.low, row.after.high),
            percent(row.difference, row.low, row.high),
            f"{row.to_refused} / {row.to_complied}",
            "-" if row.mcnemar_p is None else f"{row.mcnemar_p:.2g}",
            percent(row.smallest_detectable_change),
            str(row.n),
        )
        for row in comparison.sets
    ]
    utility = [
        (
            row.name,
            row.unit,
            f"{row.before:.4f}",
            f"{row.after:.4f}",
            f"{row.difference:+.4f} {interval(row.low, row.high)}",
            str(row.n),
        )
        for row in comparison.utility
    ]
    rates = ("before", "after", "change", "to refused / to complied", "McNemar p", "detectable", "n")
    return _filled(
        table("Safety, paired", ("set", "rate of", *rates), safety),
        table("Utility, paired", ("set", "unit", "before", "after", "change", "n"), utility),
    )


def _filled(*tables: Table) -> list[Table]:
    return [made for made in tables if made.row_count]
