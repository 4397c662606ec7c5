"""The rows that hardening trains on: given refusals, and the original model's own answers to harmless prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ballast.evaluate.answers import generate
from ballast.models import LanguageModel
from ballast.models.fingerprint import seed_of
from ballast.progress import track
from ballast.prompts import PromptSet
from ballast.prompts.chat import check_length, render
from ballast.prompts.refusals import REFUSALS
from ballast.tune.objective import Lesson, remember

REMEMBER_BATCH = 16


@dataclass(frozen=True)
class Curriculum:
    """All rows, and which of them make up each step.

    Attributes:
        refuse: Refusals to learn.
        help: Answers to keep; those with a pair number are twins of a refused prompt.
        seed: Of the order.
    """

    refuse: list[Lesson]
    help: list[Lesson]
    seed: int

    def batch(self, step: int, refusals: int, answers: int) -> list[Lesson]:
        """The rows of a step (0-based): refusals, the harmless twins of these very prompts, and other answers.

        A twin beside its harmful prompt makes the gradient of the difference between the two. The rows depend on seed
        and step alone, so an interrupted run continues with the same ones.

        Args:
            step: Which step.
            refusals: How many refusals.
            answers: How many answers; twins come first, the rest is filled from the others.
        """
        twins = {lesson.pair: lesson for lesson in self.help if lesson.pair is not None}
        rows = drawn(self.refuse, refusals, step, self.seed, "refuse")
        beside = list({row.pair: twins[row.pair] for row in rows if row.pair in twins}.values())[:answers]
        others = [lesson for lesson in self.help if lesson.pair is None] or self.help
        fill = drawn(others, answers - len(beside), step, self.seed, "help") if others else []
        return rows + beside + fill


def refusal_lessons(lm: LanguageModel, refusals: Sequence[PromptSet], tokens: int) -> list[Lesson]:
    """One lesson per harmful prompt with its refusal, cut after `tokens` tokens.

    A prompt without a response gets one of three general refusals, in turn.

    Raises:
        PromptError: A prompt is longer than the context.
    """
    lessons = []
    for number, prompt in enumerate(prompt for prompts in refusals for prompt in prompts):
        rendered = render(lm.tokenizer, prompt.prompt, prompt.response or REFUSALS[number % len(REFUSALS)])
        check_length(rendered, lm.context, prompt.id)
        kept = rendered._replace(ids=rendered.ids[: rendered.prompt_length + tokens])
        lessons.append(Lesson(prompt.id, kept, pair=prompt.pair))
    return lessons


def help_lessons(
    lm: LanguageModel, harmless: Sequence[PromptSet], answer_tokens: int, out: Path | None
) -> list[Lesson]:
    """One lesson per harmless prompt: the answer of the model as it is now, and its distribution at each token.

    Args:
        lm: The original model.
        harmless: Prompt sets; references they may have are not used.
        answer_tokens: Tokens after which the model's answer is cut.
        out: Folder in which the answers are kept, so that they are not generated twice.
    """
    rows: list[Lesson] = []
    for prompts in harmless:
        path = out / f"{prompts.slug}.jsonl" if out else None
        completions = generate(lm, prompts, max_new_tokens=answer_tokens, out=path)
        for prompt, completion in zip(prompts, completions, strict=True):
            if completion.answer:
                rendered = render(lm.tokenizer, completion.prompt, completion.answer)
                kept = rendered._replace(ids=rendered.ids[: rendered.prompt_length + completion.tokens])
                rows.append(Lesson(prompt.id, kept, pair=prompt.pair))
    rows.sort(key=lambda row: (len(row.rendered.ids), row.id))
    lessons = []
    for start in track(range(0, len(rows), REMEMBER_BATCH), "Remembering the original model"):
        batch = rows[start : start + REMEMBER_BATCH]
        teachers = remember(lm, [row.rendered for row in batch])
        lessons += [row._replace(teacher=teacher) for row, teacher in zip(batch, teachers, strict=True)]
    return lessons


def drawn(lessons: Sequence[Lesson], size: int, step: int, seed: int, stream: str) -> list[Lesson]:
    """The `size` lessons of a step (0-based): passes over all lessons, each pass in an order of its own."""
    chosen = []
    for position in range(step * size, (step + 1) * size):
        turn, place = divmod(position, len(lessons))
        order = random.Random(seed_of(seed, stream, str(turn))).sample(range(len(lessons)), len(lessons))  # noqa: S311
        chosen.append(lessons[order[place]])
    return chosen
