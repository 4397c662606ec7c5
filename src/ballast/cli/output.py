"""What the command line prints: tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ballast.evaluate import Comparison, Summary
from ballast.progress import printable


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
AXES = {"safety": "Attack success", "over_refusal": "Over-refusal"}
console = Console(
    width=None if sys.stdout.isatty() else 160,  # a file or a pipe has no width of its own
    markup=False,  # names come from files, and a bracket or a colon in them is just that
    emoji=False,
)
GAP = " " if console.width >= 120 else "\n"  # between a number and its interval


def show(value: Any, tables: Sequence[Table] = (), text: str = "") -> None:
    """Print the result of a command: `value` as JSON if asked for, else the tables and the text."""
    if state.json:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False))
        return
    for table in tables:
        console.print(table)
    if text:
        console.print(printable(text), highlight=False, soft_wrap=True)


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1, caption: str = ""
) -> Table:
    """A table whose first columns, `words` of them, are text and whose others are numbers."""
    made = Table(
        title=printable(title),
        caption=printable(caption),
        caption_justify="left",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for number, column in enumerate(columns):
        if number < words:
            made.add_column(column, overflow="fold")
        else:
            made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*map(printable, row))
    return made


def percent(value: float | None, low: float | None = None, high: float | None = None, sign: str = "") -> str:
    """A share in per cent, with its interval if there is one."""
    if value is None:
        return "-"
    text = f"{100 * value:{sign}.1f}"
    return text if low is None or high is None else f"{text}{GAP}[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def interval(low: float | None, high: float | None) -> str:
    """An interval of a number that is not a share."""
    return "-" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"


def summary_tables(summary: Summary) -> list[Table]:
    """The tables of one measurement."""

    def rates(axis: str) -> list[tuple[str, ...]]:
        return [
            (
                row.name,
                percent(row.rate, row.low, row.high),
                *(str(count) for count in (row.n, row.refused, row.complied, row.degenerate, row.unscored)),
            )
            for row in summary.sets
            if row.axis == axis
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
    columns = ("set", "% [95 %]", "n", "refused", "complied", "degenerate", "unscored")
    return _filled(
        *(table(f"{title}, judged by {summary.judge}", columns, rates(axis)) for axis, title in AXES.items()),
        table("Utility", ("set", "unit", "value", "95 %", "n"), utility, words=2),
        table("Agreement of judges", ("set", "judges", "agree, %", "kappa", "n"), agreement, words=2),
    )


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The tables of one paired comparison."""

    def changes(axis: str) -> list[tuple[str, ...]]:
        return [
            (
                row.name,
                percent(row.before.rate, row.before.low, row.before.high),
                percent(row.after.rate, row.after.low, row.after.high),
                percent(row.difference, row.low, row.high, "+"),
                f"{row.to_refused} / {row.to_complied}{GAP}"
                + ("p -" if row.mcnemar_p is None else f"p {row.mcnemar_p:.1g}"),
                f"{row.n}{GAP}({percent(row.smallest_detectable_change)})",
            )
            for row in comparison.sets
            if row.axis == axis
        ]

    utility = [
        (
            row.name,
            row.unit,
            f"{row.before:.4f}",
            f"{row.after:.4f}",
            f"{row.difference:+.4f}{GAP}{interval(row.low, row.high)}",
            str(row.n),
        )
        for row in comparison.utility
    ]
    caption = "Flips to refused / to complied, exact McNemar p; beside n the change seen with power 0.8, in points."
    columns = ("set", "before, %", "after, %", "points", "flips", "n")
    return _filled(
        *(table(f"{title}, paired", columns, changes(axis), caption=caption) for axis, title in AXES.items()),
        table("Utility, paired", ("set", "unit", "before", "after", "change", "n"), utility, words=2),
    )


def _filled(*tables: Table) -> list[Table]:
    return [made for made in tables if made.row_count]
