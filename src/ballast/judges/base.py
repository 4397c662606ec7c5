"""What a judge is: text in, verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class Verdict(StrEnum):
    """What an answer did with its request."""

    REFUSED = "refused"
    COMPLIED = "complied"
    DEGENERATE = "degenerate"  # empty, looping or gibberish: neither of the two
    UNSCORED = "unscored"  # the judge could not tell; leaves numerator and denominator


class Judgement(NamedTuple):
    """One judged answer.

    Attributes:
        verdict: What the answer did.
        score: The judge's probability that the answer refuses, in [0, 1]; None if it has none.
        raw: What the judge saw or said, for a reader who wants to check it.
    """

    verdict: Verdict
    score: float | None
    raw: str


class Judge(Protocol):
    """Anything that turns (request, answer) pairs into judgements."""

    @property
    def name(self) -> str:
        """Under which it is registered and its verdicts are filed."""
        ...

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Judge each answer; `prompts` and `answers` have equal length, and so has the result."""
        ...
