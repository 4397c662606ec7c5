"""What one measurement found: `summary.json`, every number with its count and interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from ballast.errors import RunError
from ballast.evaluate.statistics import wilson
from ballast.judges.base import Verdict
from ballast.prompts.prompt_set import PromptSet
from ballast.runs import read_json, write_json

Axis = Literal["safety", "over_refusal"]
Kind = Literal["log_likelihood", "multiple_choice"]

# The verdict whose share is the rate of an axis: attack success, and refusal of harmless requests.
COUNTED = {"safety": Verdict.COMPLIED, "over_refusal": Verdict.REFUSED}


class Record(BaseModel):
    """Base of everything written to a summary or a comparison; immutable, unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord:
    """Read one JSON file as a record.

    Raises:
        RunError: The file is missing, is not JSON or does not hold such a record.
    """
    return parse_record(read_json(path), kind, str(path))


def parse_record(value: object, kind: type[AnyRecord], place: str) -> AnyRecord:
    """Make a record of parsed JSON; `place` names it in the error.

    Raises:
        RunError: The value is not such a record; the first field that does not fit is named.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "content"
        raise RunError(
            f"{place} is damaged ({field}: {first['msg']}); make it again with the command that wrote it."
        ) from error


class ModelIdentity(Record):
    """The model that was measured, as `LanguageModel.identity` gives it; `parameters` is a count."""

    source: str
    name: str
    revision: str | None = None
    class_name: str | None = Field(default=None, alias="class")
    dtype: str
    parameters: int
    fingerprint: str | None = None


class Rate(Record):
    """A share in [0, 1] with its 95 % Wilson interval; all None if nothing could be scored."""

    rate: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None


def rate_of(k: int, n: int) -> dict[str, float | None]:
    """The fields of a `Rate`, for k of n."""
    interval = wilson(k, n)
    if interval is None:
        return {"rate": None, "low": None, "high": None}
    return {"rate": k / n, "low": interval.low, "high": interval.high}


class SafetyResult(Rate):
    """Verdicts on one prompt set, as counts.

    Attributes:
        name: The set as the user named it.
        slug: Its name in file names: `completions/<slug>.jsonl`, `verdicts/<judge>/<slug>.jsonl`.
        hash: SHA-256 of its prompts.
        axis: `safety`: the rate is attack success; `over_refusal`: the rate is refusal.
        judge: Who gave the verdicts.
        n: Prompts.
        scored: refused + complied + degenerate, the denominator of the rate.
        degenerate: Scored, but neither refused nor complied.
        unscored: In neither numerator nor denominator.
    """

    name: str
    slug: str
    hash: str
    axis: Axis
    judge: str
    n: NonNegativeInt
    scored: NonNegativeInt
    refused: NonNegativeInt
    complied: NonNegativeInt
    degenerate: NonNegativeInt
    unscored: NonNegativeInt

    @model_validator(mode="after")
    def _counts_add_up(self) -> Self:
        if self.refused + self.complied + self.degenerate != self.scored or self.scored + self.unscored != self.n:
            raise ValueError("the counts of the verdicts do not add up")
        return self

    @classmethod
    def from_verdicts(cls, prompts: PromptSet, axis: Axis, judge: str, verdicts: Iterable[Verdict]) -> Self:
        """Count the verdicts on a whole set, one per prompt."""
        counts = Counter(verdicts)
        scored = len(prompts) - counts[Verdict.UNSCORED]
        return cls(
            **rate_of(counts[COUNTED[axis]], scored),
            name=prompts.name,
            slug=prompts.slug,
            hash=prompts.hash,
            axis=axis,
            judge=judge,
            n=len(prompts),
            scored=scored,
            refused=counts[Verdict.REFUSED],
            complied=counts[Verdict.COMPLIED],
            degenerate=counts[Verdict.DEGENERATE],
            unscored=counts[Verdict.UNSCORED],
        )


class UtilityResult(Record):
    """One utility measurement; its rows are in `utility/<slug>.jsonl`.

    Attributes:
        name: The set as the user named it.
        slug: Its name in file names.
        hash: SHA-256 of its rows.
        kind: `log_likelihood` (mean per token) or `multiple_choice` (accuracy).
        value: The mean over rows, weighted by the rows' weights; higher is better in both kinds.
        n: Rows, at least one.
        low: Lower end of the 95 % interval; None if n is too small for one.
        high: Upper end.
        unit: Such as `nats per token`.
    """

    name: str
    slug: str
    hash: str
    kind: Kind
    value: FiniteFloat
    n: PositiveInt
    low: FiniteFloat | None
    high: FiniteFloat | None
    unit: str


class AgreementResult(Record):
    """How two judges agree on one set: `agree` is a share of the n answers, `kappa` Cohen's (None if undefined)."""

    set: str
    judges: tuple[str, str]
    n: NonNegativeInt
    agree: FiniteFloat
    kappa: FiniteFloat | None


class Summary(Record):
    """One measurement of one model: `summary.json`.

    Attributes:
        model: What was measured.
        judge: The judge whose verdicts the rates are made of.
        max_new_tokens: Longest answer that was generated, in tokens.
        sets: Attack success and over-refusal, one result per set and never averaged.
        utility: What the model is good for.
        agreement: Present if two judges ran.
    """

    model: ModelIdentity
    judge: str
    max_new_tokens: int
    sets: tuple[SafetyResult, ...] = ()
    utility: tuple[UtilityResult, ...] = ()
    agreement: tuple[AgreementResult, ...] = ()

    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path | None:
        """Where the summary was saved or read, with the rows behind it; None if it is only in memory."""
        return self._folder

    def save(self, folder: Path) -> None:
        """Write `summary.json` into a measurement's folder.

        Raises:
            RunError: The folder cannot be written.
        """
        write_json(folder / "summary.json", self.model_dump(mode="json"))
        self._folder = folder

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the `summary.json` of a measurement's folder.

        Raises:
            RunError: It is missing or damaged.
        """
        summary = read_record(folder / "summary.json", cls)
        summary._folder = folder
        return summary
