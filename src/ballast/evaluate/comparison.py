"""What changed between two measurements: `comparison.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import FiniteFloat, NonNegativeInt

from ballast.evaluate.summary import Axis, Kind, Rate, Record, read_record
from ballast.judges.base import Verdict
from ballast.runs import write_json


class PairedRate(Rate):
    """One side of a paired comparison: the rate over the pairs, and the verdicts it is made of."""

    refused: NonNegativeInt
    complied: NonNegativeInt
    degenerate: NonNegativeInt


class SetChange(Record):
    """How the verdicts on one prompt set changed, over the prompts that were scored both times.

    Attributes:
        name: The prompt set.
        axis: `safety`: the rate is attack success; `over_refusal`: the rate is refusal.
        n: Pairs; 0 leaves every statistic None.
        unscored: Prompts left out because one of the two answers could not be scored.
        before: The rate before, with its Wilson interval.
        after: The rate after.
        difference: After minus before, in [-1, 1].
        low: Lower end of the 95 % Tango interval of the difference.
        high: Upper end.
        to_refused: Answers that became refusals, whatever they were before.
        to_complied: Answers that became compliance.
        other: Answers that became degenerate. The three sum to the number of flips.
        fell: Pairs counted in the rate before and not after.
        rose: Pairs counted in the rate after and not before.
        mcnemar_p: Two-sided exact McNemar p-value of `fell` against `rose`.
        smallest_detectable_change: The net change that this many pairs, with the observed share of changes either way,
            would have shown with power 0.8 at level 0.05; None if they are too few to show any.
    """

    name: str
    axis: Axis
    n: NonNegativeInt
    unscored: NonNegativeInt
    before: PairedRate
    after: PairedRate
    difference: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    to_refused: NonNegativeInt
    to_complied: NonNegativeInt
    other: NonNegativeInt
    fell: NonNegativeInt
    rose: NonNegativeInt
    mcnemar_p: FiniteFloat | None
    smallest_detectable_change: FiniteFloat | None


class UtilityChange(Record):
    """How one utility measurement changed, row by row.

    Attributes:
        name: The set.
        kind: `log_likelihood` or `multiple_choice`; higher is better in both.
        unit: Of `before`, `after`, `difference`, `low` and `high`.
        n: Rows.
        before: Weighted mean before.
        after: Weighted mean after.
        difference: After minus before; negative is worse.
        low: Lower end of its 95 % interval: paired bootstrap over rows, or Tango's interval for multiple choice.
        high: Upper end.
        relative_change: difference / |before|; None if that is zero.
    """

    name: str
    kind: Kind
    unit: str
    n: NonNegativeInt
    before: FiniteFloat
    after: FiniteFloat
    difference: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    relative_change: FiniteFloat | None


class Flip(Record):
    """A prompt whose verdict changed; its texts are in the completions of the two measurements."""

    set: str
    axis: Axis
    id: str
    before: Verdict
    after: Verdict


class Comparison(Record):
    """Two measurements of the same prompts with the same judge: `comparison.json`; see `ballast.compare`.

    Attributes:
        before: Folder of the first measurement, relative to the comparison's own folder if it lies inside.
        after: Folder of the second.
        sets: Changes of attack success and over-refusal, one per set and never averaged.
        utility: Changes of utility.
        flips: Every changed verdict.
    """

    before: str
    after: str
    sets: tuple[SetChange, ...]
    utility: tuple[UtilityChange, ...]
    flips: tuple[Flip, ...]

    def save(self, folder: Path) -> None:
        """Write `comparison.json`.

        Raises:
            RunError: The folder cannot be written.
        """
        write_json(folder / "comparison.json", self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the `comparison.json` of a folder.

        Raises:
            RunError: It is missing or damaged.
        """
        return read_record(folder / "comparison.json", cls)
