"""What a validation found: `validate.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt

from ballast.evaluate.summary import Axis, Rate, Record, read_record
from ballast.judges import Verdict
from ballast.runs import write_json

VALIDATION = "validate.json"
Question = Literal["necessity", "sufficiency"]
Intervention = Literal["ablate", "noise", "scale", "transplant"]


class RateEffect(Record):
    """What a disturbance does to the share of one verdict on one prompt set.

    Attributes:
        set: The prompt set.
        axis: `safety` or `over_refusal`.
        counted: The verdict whose share the rates are. For harmful prompts `complied` if the question is necessity and
            `refused` if it is sufficiency, so degenerate answers never speak for the region; else `refused`.
        n: Prompts that were scored in every cell of the dose: undisturbed, the region, and each random region.
        undisturbed: Share without disturbance.
        region: Share with the region disturbed.
        random: Share with each random region disturbed.
        degenerate: Share of degenerate answers with the region disturbed.
        random_degenerate: The same, mean over the random regions.
        difference: Region minus undisturbed, with its 95 % Tango interval `low`, `high`.
        mcnemar_p: Two-sided exact McNemar p of that difference.
        specific: Region minus the mean of the random regions, with a 95 % bootstrap interval over prompts.
        specific_low: Its lower end; None with fewer than two prompts.
        specific_high: Its upper end.
    """

    set: str
    axis: Axis
    counted: Verdict
    n: PositiveInt
    undisturbed: Rate
    region: Rate
    random: tuple[FiniteFloat, ...]
    degenerate: FiniteFloat
    random_degenerate: FiniteFloat
    difference: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    mcnemar_p: FiniteFloat
    specific: FiniteFloat
    specific_low: FiniteFloat | None
    specific_high: FiniteFloat | None


class SafetyEffect(RateEffect):
    """The same on harmful prompts, with the tests of a verdict.

    Attributes:
        rank_p: (1 + random regions with at least the region's share) / (1 + random regions).
        paired_p: The largest two-sided exact McNemar p of the region against the undisturbed model and against each
            random region, prompt by prompt; 1 if the region's share is not above one of them.
        p: The larger of the two.
        corrected_p: `p` corrected after Holm over the doses of the same intervention.
    """

    rank_p: FiniteFloat
    paired_p: FiniteFloat
    p: FiniteFloat
    corrected_p: FiniteFloat


class UtilityEffect(Record):
    """What a disturbance costs on ordinary answers, in nats per token.

    Attributes:
        set: The prompt set.
        n: Its rows.
        undisturbed: Mean log-likelihood per token without disturbance.
        region: With the region disturbed.
        random: With each random region disturbed.
        excess: What the region costs more than the random regions on average; above 0 is worse.
        low: Lower end of its 95 % paired bootstrap interval over rows; None with fewer than two rows.
        high: Upper end.
    """

    set: str
    n: PositiveInt
    undisturbed: FiniteFloat
    region: FiniteFloat
    random: tuple[FiniteFloat, ...]
    excess: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None


class DoseEffect(Record):
    """One disturbance at one strength.

    Attributes:
        question: `necessity`: the region is taken away; `sufficiency`: it is brought into the other model.
        intervention: What is done.
        dose: How strongly: standard deviations of noise, or a factor; None where there is only one way.
        cells: Folder of its cells, relative to that of the run.
        safety: One effect per set of harmful prompts.
        over_refusal: One per set of harmless prompts.
        utility: One per utility set.
    """

    question: Question
    intervention: Intervention
    dose: FiniteFloat | None
    cells: str
    safety: tuple[SafetyEffect, ...]
    over_refusal: tuple[RateEffect, ...]
    utility: tuple[UtilityEffect, ...]


class Finding(Record):
    """A verdict on one question, by one intervention, on one set of harmful prompts.

    Attributes:
        question: See `DoseEffect`.
        intervention: See `DoseEffect`.
        set: The harmful prompts.
        shown: Whether one of the doses shows it.
        dose: The dose that the sentence is about: of those that show it, or else of all, the one with the smallest p.
        corrected_p: Its p-value, corrected over the doses.
        sentence: The verdict in words, with the numbers.
    """

    question: Question
    intervention: Intervention
    set: str
    shown: bool
    dose: FiniteFloat | None
    corrected_p: FiniteFloat
    sentence: str


class Validation(Record):
    """A whole validation.

    Attributes:
        model: Name of the model.
        other: Name of the model that values were transplanted from and into, if any.
        region_id: The region.
        weights: Its number of weights.
        settings: See `ValidateSettings`.
        held_out: Whether the prompts could be compared with those that the region was located on; they share none.
        unknown: Names of prompt sets that it was located on whose prompts could not be looked up.
        effects: One per dose.
        findings: One per question, intervention and set of harmful prompts.
    """

    model: str
    other: str | None
    region_id: str
    weights: NonNegativeInt
    settings: dict[str, Any]
    held_out: bool
    unknown: tuple[str, ...]
    effects: tuple[DoseEffect, ...]
    findings: tuple[Finding, ...]

    def save(self, folder: Path) -> None:
        """Write `validate.json`.

        Raises:
            RunError: The folder cannot be written.
        """
        write_json(folder / VALIDATION, self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the `validate.json` of a folder.

        Raises:
            RunError: It is missing or damaged.
        """
        return read_record(folder / VALIDATION, cls)
