"""The rows that hardening trains on: given refusals, and the original model's own answers to harmless prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from ballast.errors import PromptError
from ballast.evaluate.answers import generate
from ballast.models import LanguageModel
from ballast.models.fingerprint import seed_of
from ballast.progress import track
from ballast.prompts import PromptSet
from ballast.prompts.chat import Rendered, check_length, render
from ballast.tune.objective import Lesson, remember

REMEMBER_BATCH = 16


def refusal_lessons(lm: LanguageModel, refusals: PromptSet) -> list[Lesson]:
    """One lesson per harmful prompt with a refusal.

    Raises:
        PromptError: A prompt has no response, or is longer than the context.
    """
    lessons = []
    for prompt in refusals:
        if not prompt.response:
            raise PromptError(
                f"{refusals.name}: the prompt {prompt.id} has no response; give refusals in the field `response`, "
                "or tune on builtin/refusals."
            )
        rendered = render(lm.tokenizer, prompt.prompt, prompt.response)
        check_length(rendered, lm.context, prompt.id)
        lessons.append(Lesson(prompt.id, rendered, None))
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
    rows: list[tuple[str, Rendered]] = []
    for prompts in harmless:
        path = out / f"{prompts.slug}.jsonl" if out else None
        for completion in generate(lm, prompts, max_new_tokens=answer_tokens, out=path):
            if completion.answer:
                rendered = render(lm.tokenizer, completion.prompt, completion.answer)
                length = min(len(rendered.ids), rendered.prompt_length + completion.tokens)
                rows.append((completion.id, Rendered(rendered.ids[:length], rendered.prompt_length)))
    rows.sort(key=lambda row: (len(row[1].ids), row[0]))
    lessons = []
    for start in track(range(0, len(rows), REMEMBER_BATCH), "Remembering the original model"):
        batch = rows[start : start + REMEMBER_BATCH]
        teachers = remember(lm, [rendered for _, rendered in batch])
        lessons += [Lesson(name, row, teacher) for (name, row), teacher in zip(batch, teachers, strict=True)]
    return lessons


def batch_at(lessons: Sequence[Lesson], size: int, step: int, seed: int, stream: str) -> list[Lesson]:
    """The `size` lessons of a step (0-based): passes over all lessons, each in an order of its own.

    The order depends on seed, stream and pass alone, so an interrupted run continues with the same batches.
    """
    chosen = []
    for position in range(step * size, (step + 1) * size):
        turn, place = divmod(position, len(lessons))
        order = random.Random(seed_of(seed, stream, str(turn))).sample(range(len(lessons)), len(lessons))  # noqa: S311
        chosen.append(lessons[order[place]])
    return chosen
