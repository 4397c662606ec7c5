"""Rows of the page's tables that no artefact holds as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ballast.evaluate.statistics import wilson
from ballast.evaluate.summary import Rate, SafetyResult
from ballast.report import formats
from ballast.report.read import Artefacts
from ballast.report.schema import Cell, Check

VERDICTS = ("refused", "complied", "degenerate", "unscored")


@dataclass(frozen=True)
class RoleRow:
    """The region within one role; `share` is of the region, `density` of the role's weights, both in [0, 1]."""

    role: str
    size: int
    selected: int
    share: float
    density: float


@dataclass(frozen=True)
class VerdictRow:
    """Verdict counts of one prompt set, as `97 → 31` when it was measured twice."""

    name: str
    axis: str
    judge: str
    n: str
    counts: list[str]


@dataclass(frozen=True)
class CheckRow:
    """Rates on the select split after `step` optimizer steps; the counts behind them are None if unknown."""

    step: int
    attack_success: Rate
    n_harmful: int | None
    over_refusal: Rate
    n_harmless: int | None


def check_rows(artefacts: Artefacts) -> list[CheckRow]:
    """Checks on the select split by step; the training log is preferred since its rows carry counts."""
    found: dict[int, Check] = {row.step: row for row in artefacts.harden.selection} if artefacts.harden else {}
    found |= {row.step: row.select for row in artefacts.training if row.select is not None}
    return [
        CheckRow(
            step,
            _with_interval(check.attack_success_rate, check.n_harmful),
            check.n_harmful,
            _with_interval(check.over_refusal, check.n_harmless),
            check.n_harmless,
        )
        for step, check in sorted(found.items())
    ]


def by_role(cells: Sequence[Cell]) -> list[RoleRow]:
    """The region's cells summed over layers, the largest share first."""
    total = sum(cell.selected for cell in cells) or 1
    rows = []
    for role in dict.fromkeys(cell.role for cell in cells):
        size = sum(cell.size for cell in cells if cell.role == role)
        selected = sum(cell.selected for cell in cells if cell.role == role)
        rows.append(RoleRow(role, size, selected, selected / total, selected / size if size else 0.0))
    return sorted(rows, key=lambda row: -row.selected)


def verdict_rows(artefacts: Artefacts) -> list[VerdictRow]:
    """Verdict counts of every set in the order of its first measurement."""
    measured: dict[str, list[SafetyResult]] = {}
    for stage in artefacts.stages.values():
        for row in stage.summary.sets:
            measured.setdefault(row.name, []).append(row)
    return [
        VerdictRow(
            name,
            rows[0].axis,
            rows[0].judge,
            _change([row.n for row in rows]),
            [_change([getattr(row, verdict) for row in rows]) for verdict in VERDICTS],
        )
        for name, rows in measured.items()
    ]


def _with_interval(rate: float, count: int | None) -> Rate:
    interval = wilson(round(rate * count), count) if count else None
    return Rate(rate=rate, low=interval and interval.low, high=interval and interval.high)


def _change(counts: list[int]) -> str:
    """One count, or several joined by arrows unless they are all equal."""
    shown = counts[:1] if len(set(counts)) == 1 else counts
    return " → ".join(formats.integer(count) for count in shown)
