"""Open two measurements that were made alike, and the rows behind each of their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveFloat

from ballast.errors import RunError
from ballast.evaluate.summary import SafetyResult, Summary, UtilityResult, parse_record
from ballast.judges.base import Verdict
from ballast.runs import JsonLines


class VerdictRow(BaseModel):
    """One line of `verdicts/<judge>/<slug>.jsonl`."""

    model_config = ConfigDict(frozen=True)

    id: str
    verdict: Verdict


class UtilityRow(BaseModel):
    """One line of `utility/<slug>.jsonl`; the weight is a number of tokens, or 1."""

    model_config = ConfigDict(frozen=True)

    id: str
    value: FiniteFloat
    weight: PositiveFloat


AnyRow = TypeVar("AnyRow", VerdictRow, UtilityRow)
AnyResult = TypeVar("AnyResult", SafetyResult, UtilityResult)


@dataclass(frozen=True)
class Measurement:
    """A summary and the folder that holds the rows behind it."""

    folder: Path
    summary: Summary

    @classmethod
    def open(cls, source: Path | str | Summary) -> Measurement:
        """Open a measurement's folder, or that of a summary.

        Raises:
            RunError: The folder has no readable summary, or the summary was never saved.
        """
        summary = source if isinstance(source, Summary) else Summary.load(Path(source))
        if summary.folder is None:
            raise RunError("A summary that was not saved has no rows to compare; give measure an output folder.")
        return cls(summary.folder, summary)

    def verdicts(self, result: SafetyResult) -> dict[str, VerdictRow]:
        """The verdicts on one set by prompt id; see `_rows` for the errors."""
        return _rows(self.folder / "verdicts" / result.judge / f"{result.slug}.jsonl", VerdictRow, result.n)

    def values(self, result: UtilityResult) -> dict[str, UtilityRow]:
        """The values of one utility set by row id; see `_rows` for the errors."""
        return _rows(self.folder / "utility" / f"{result.slug}.jsonl", UtilityRow, result.n)

    def shown_from(self, out: Path | None) -> str:
        """The folder as a comparison in `out` names it: relative if it lies inside."""
        if out is None:
            return str(self.folder)
        folder, base = self.folder.resolve(), out.resolve()
        return folder.relative_to(base).as_posix() if folder.is_relative_to(base) else str(folder)


def check_comparable(first: Measurement, second: Measurement) -> None:
    """Refuse two measurements whose answers or verdicts were not made alike.

    Raises:
        RunError: They differ in the judge, the length of the answers, the sets or the prompts of a set.
    """
    here, there = first.folder, second.folder
    for what in ("judge", "max_new_tokens"):
        mine, theirs = getattr(first.summary, what), getattr(second.summary, what)
        if mine != theirs:
            raise RunError(
                f"{here} was measured with {what} {mine} and {there} with {theirs}; measure both in the same way."
            )
    hashes, other_hashes = _hashes(first.summary), _hashes(second.summary)
    for key in sorted(hashes.keys() | other_hashes.keys()):
        kind, name = key
        if key not in hashes or key not in other_hashes:
            only = here if key in hashes else there
            raise RunError(f"Only {only} measured {name} ({kind}); measure both on the same sets.")
        if hashes[key] != other_hashes[key]:
            raise RunError(
                f"The prompts of {name} differ between {here} and {there}; measure both on the same prompts."
            )


def _hashes(summary: Summary) -> dict[tuple[str, str], str]:
    results: tuple[SafetyResult | UtilityResult, ...] = (*summary.sets, *summary.utility)
    return {_key(result): result.hash for result in results}


def _key(result: SafetyResult | UtilityResult) -> tuple[str, str]:
    """What identifies a result within a summary: its axis and judge, or its kind, and the set."""
    return (f"{result.axis}, {result.judge}" if isinstance(result, SafetyResult) else result.kind, result.name)


def matched(first: Sequence[AnyResult], second: Sequence[AnyResult]) -> list[tuple[AnyResult, AnyResult]]:
    """Results of the same set in two comparable measurements, in the order of the first."""
    others = {_key(result): result for result in second}
    return [(result, others[_key(result)]) for result in first]


def paired(name: str, before: Mapping[str, AnyRow], after: Mapping[str, AnyRow]) -> list[tuple[AnyRow, AnyRow]]:
    """Rows of the same id, in the order of the first measurement.

    Raises:
        RunError: A row is in one measurement only.
    """
    if before.keys() != after.keys():
        odd = min(before.keys() ^ after.keys())
        raise RunError(f"The row {odd!r} of {name} is in one measurement only; measure both again.")
    return [(row, after[identity]) for identity, row in before.items()]


def _rows(path: Path, kind: type[AnyRow], n: int) -> dict[str, AnyRow]:
    """The rows of a file by id.

    Raises:
        RunError: A row is damaged or repeated, or there are not n of them.
    """
    raw = JsonLines(path).rows
    rows = [parse_record(row, kind, f"{path} line {number}") for number, row in enumerate(raw, start=1)]
    by_id = {row.id: row for row in rows}
    if not len(by_id) == len(rows) == n:
        raise RunError(f"{path} has {len(by_id)} of {n} rows; run the measurement again to complete it.")
    return by_id
