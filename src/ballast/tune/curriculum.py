"""All rows of hardening, and which of them make up each step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ballast.judges import get_judge
from ballast.models import LanguageModel
from ballast.models.fingerprint import seed_of
from ballast.prompts import PromptSet
from ballast.tune.lessons import (
    closing_lessons,
    continuing_lessons,
    help_lessons,
    preference_lessons,
    refusal_lessons,
)
from ballast.tune.objective import Lesson
from ballast.tune.reference_code import flat_lessons
from ballast.tune.settings import HardenSettings

Row = TypeVar("Row")
CONTINUED = 160
CONTINUED_TOKENS = 48


@dataclass(frozen=True)
class Curriculum:
    """All rows, and which of them make up each step.

    Attributes:
        refuse: Refusals to learn.
        help: Answers to keep; those with a pair number are twins of a refused prompt.
        seed: Of the order.
        close: Ends of refusals.
        go_on: Ends of sentences in answers to keep.
        left_out: Harmful prompts that none of the refusals answers.
    """

    refuse: list[Lesson]
    help: list[Lesson]
    seed: int
    close: Sequence[Lesson] = ()
    go_on: Sequence[Lesson] = ()
    left_out: int = 0

    def batch(self, step: int, refusals: int, answers: int, endings: int = 0) -> list[Lesson]:
        """The rows of a step (0-based): refusals, the harmless twins of these very prompts, other answers, endings.

        A twin beside its harmful prompt makes the gradient of the difference between the two. The rows depend on seed
        and step alone, so an interrupted run continues with the same ones.

        Args:
            step: Which step.
            refusals: How many refusals.
            answers: How many answers; twins come first, the rest is filled from the others.
            endings: How many ends of refusals, and as many ends of sentences in answers.
        """
        twins = {lesson.pair: lesson for lesson in self.help if lesson.pair is not None}
        rows = drawn(self.refuse, refusals, step, self.seed, "refuse")
        beside = list({row.pair: twins[row.pair] for row in rows if row.pair in twins}.values())[:answers]
        others = [lesson for lesson in self.help if lesson.pair is None] or self.help
        fill = drawn(others, answers - len(beside), step, self.seed, "help") if others else []
        close = drawn(self.close, endings, step, self.seed, "close") if self.close else []
        go_on = drawn(self.go_on, endings, step, self.seed, "go on") if self.close and self.go_on else []
        return rows + beside + fill + close + go_on


def curriculum(
    lm: LanguageModel,
    refusals: Sequence[PromptSet],
    harmless: Sequence[PromptSet],
    settings: HardenSettings,
    out: Path | None,
) -> Curriculum:
    """The rows for these prompt sets.

    Args:
        lm: The original model.
        refusals: As for `harden`.
        harmless: As for `harden`.
        settings: Objective and variant, how long the rows are, and their seed.
        out: Folder in which the model's own answers are kept, so that they are not generated twice.
    """
    if settings.variant == "reference_code":
        return Curriculum(flat_lessons(lm, refusals), [], settings.seed)
    if settings.objective == "preference":
        judge = get_judge(settings.judge)
        refuse = preference_lessons(lm, refusals, settings.refusal_tokens, judge, settings.check_tokens, out)
    else:
        refuse = refusal_lessons(lm, refusals, settings.refusal_tokens)
    endings = settings.endings_per_step > 0
    return Curriculum(
        refuse,
        help_lessons(lm, harmless, settings.answer_tokens, out),
        settings.seed,
        closing_lessons(lm, refusals) if endings else [],
        continuing_lessons(lm, harmless, CONTINUED, CONTINUED_TOKENS, settings.seed, out) if endings else [],
        left_out=sum(map(len, refusals)) - len(refuse),
    )


def drawn(lessons: Sequence[Row], size: int, step: int, seed: int, stream: str) -> list[Row]:
    """The `size` rows of a step (0-based): passes over all rows, each pass in an order of its own."""
    chosen = []
    for position in range(step * size, (step + 1) * size):
        turn, place = divmod(position, len(lessons))
        order = random.Random(seed_of(seed, stream, str(turn))).sample(range(len(lessons)), len(lessons))  # noqa: S311
        chosen.append(lessons[order[place]])
    return chosen
