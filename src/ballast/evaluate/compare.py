"""Compare two measurements prompt by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ballast.errors import RunError
from ballast.evaluate.comparison import Comparison, Flip, PairedRate, SetChange, UtilityChange
from ballast.evaluate.pairing import Measurement, UtilityRow, check_comparable, matched, paired
from ballast.evaluate.statistics import (
    bootstrap_mean_interval,
    mcnemar_exact,
    paired_difference_interval,
    smallest_detectable_change,
)
from ballast.evaluate.summary import COUNTED, Axis, SafetyResult, Summary, UtilityResult, rate_of
from ballast.judges.base import Verdict

BOOTSTRAP_SEED = 0


class Pair(NamedTuple):
    """The verdicts on one prompt."""

    id: str
    before: Verdict
    after: Verdict


def compare(before: Path | str | Summary, after: Path | str | Summary, out: Path | str | None = None) -> Comparison:
    """Compare two measurements of the same prompts, prompt by prompt.

    Degenerate answers are scored but are neither refusals nor compliance. A prompt with an unscored answer leaves its
    pair, on both sides, and is counted.

    Args:
        before: A folder written by `measure`, or the summary it returned.
        after: The same, of the changed model.
        out: Folder for `comparison.json`; by default nothing is written.

    Raises:
        RunError: A measurement is missing or damaged, or the two differ in prompts, judge or length of the answers.
    """
    folder = None if out is None else Path(out)
    first, second = Measurement.open(before), Measurement.open(after)
    check_comparable(first, second)
    sets: list[SetChange] = []
    flips: list[Flip] = []
    for mine, theirs in matched(first.summary.sets, second.summary.sets):
        rows = paired(mine.name, first.verdicts(mine), second.verdicts(theirs))
        pairs = [Pair(old.id, old.verdict, new.verdict) for old, new in rows]
        scored = [pair for pair in pairs if Verdict.UNSCORED not in (pair.before, pair.after)]
        sets.append(_set_change(mine, scored, unscored=len(pairs) - len(scored)))
        flips.extend(
            Flip(set=mine.name, axis=mine.axis, id=pair.id, before=pair.before, after=pair.after)
            for pair in scored
            if pair.before != pair.after
        )
    comparison = Comparison(
        before=first.shown_from(folder),
        after=second.shown_from(folder),
        sets=tuple(sets),
        utility=tuple(
            _utility_change(mine, paired(mine.name, first.values(mine), second.values(theirs)))
            for mine, theirs in matched(first.summary.utility, second.summary.utility)
        ),
        flips=tuple(flips),
    )
    if folder is not None:
        comparison.save(folder)
    return comparison


def _set_change(result: SafetyResult, pairs: Sequence[Pair], unscored: int) -> SetChange:
    """The change on one set over the pairs that were scored both times."""
    counted = COUNTED[result.axis]
    fell = sum(pair.before == counted != pair.after for pair in pairs)
    rose = sum(pair.before != counted == pair.after for pair in pairs)
    became = Counter(pair.after for pair in pairs if pair.before != pair.after)
    n = len(pairs)
    interval = paired_difference_interval(fell, rose, n)
    return SetChange(
        name=result.name,
        axis=result.axis,
        n=n,
        unscored=unscored,
        before=_paired_rate([pair.before for pair in pairs], result.axis),
        after=_paired_rate([pair.after for pair in pairs], result.axis),
        difference=(rose - fell) / n if n else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        to_refused=became[Verdict.REFUSED],
        to_complied=became[Verdict.COMPLIED],
        other=became[Verdict.DEGENERATE],
        fell=fell,
        rose=rose,
        mcnemar_p=mcnemar_exact(fell, rose) if n else None,
        smallest_detectable_change=smallest_detectable_change(n, (fell + rose) / n) if n else None,
    )


def _paired_rate(verdicts: Sequence[Verdict], axis: Axis) -> PairedRate:
    counts = Counter(verdicts)
    return PairedRate(
        **rate_of(counts[COUNTED[axis]], len(verdicts)),
        refused=counts[Verdict.REFUSED],
        complied=counts[Verdict.COMPLIED],
        degenerate=counts[Verdict.DEGENERATE],
    )


def _utility_change(result: UtilityResult, pairs: Sequence[tuple[UtilityRow, UtilityRow]]) -> UtilityChange:
    """The change of one weighted mean over the same rows."""
    for old, new in pairs:
        if old.weight != new.weight:
            raise RunError(
                f"The row {old.id!r} of {result.name} has {old.weight:g} tokens in one measurement and {new.weight:g} "
                "in the other; compare models that share a tokenizer."
            )
    first = np.array([old.value for old, _ in pairs])
    second = np.array([new.value for _, new in pairs])
    weights = np.array([old.weight for old, _ in pairs])
    if result.kind == "multiple_choice":
        interval = paired_difference_interval(int((first > second).sum()), int((second > first).sum()), len(pairs))
    else:
        interval = bootstrap_mean_interval(second - first, BOOTSTRAP_SEED, weights=weights)
    before = float(np.average(first, weights=weights))
    difference = float(np.average(second - first, weights=weights))
    return UtilityChange(
        name=result.name,
        kind=result.kind,
        unit=result.unit,
        n=len(pairs),
        before=before,
        after=float(np.average(second, weights=weights)),
        difference=difference,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        relative_change=difference / abs(before) if before else None,
    )
