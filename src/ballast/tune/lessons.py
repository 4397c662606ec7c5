"""The rows that hardening trains on: given refusals, and the original model's own answers to harmless prompts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from ballast.evaluate.answers import generate
from ballast.models import LanguageModel
from ballast.progress import track
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import Rendered, check_length, render
from ballast.prompts.refusals import REFUSALS
from ballast.tune.objective import Lesson, remember

REMEMBER_BATCH = 16
SENTENCE_ENDS = (".", "!", "?")


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
    return _remembered(lm, rows)


def closing_lessons(lm: LanguageModel, refusals: Sequence[PromptSet]) -> list[Lesson]:
    """One lesson per harmful prompt that has a refusal of its own: that the whole refusal is followed by its end.

    Only the end-of-turn token counts. None for a model whose template closes an answer with no special token.

    Raises:
        PromptError: A prompt with its refusal is longer than the context.
    """
    special = set(lm.tokenizer.all_special_ids)
    lessons = []
    for prompt in itertools.chain(*refusals):
        if prompt.response is None:
            continue
        rendered = render(lm.tokenizer, prompt.prompt, prompt.response)
        check_length(rendered, lm.context, prompt.id)
        if rendered.ids[-1] in special:
            lessons.append(Lesson(prompt.id, rendered._replace(prompt_length=len(rendered.ids) - 1)))
    return lessons


def continuing_lessons(
    lm: LanguageModel, harmless: Sequence[PromptSet], limit: int, tokens: int, seed: int, out: Path | None
) -> list[Lesson]:
    """One lesson per end of a sentence in the original model's answers: how likely it is to go on, and with what.

    Only the token behind the sentence counts. They keep the model from ending every answer where a refusal would end.

    Args:
        lm: The original model.
        harmless: Prompt sets.
        limit: How many of all their prompts are drawn.
        tokens: Tokens after which the model's answer is cut.
        seed: Of the draw.
        out: Folder in which the answers are kept.
    """
    numbered = enumerate(itertools.chain(*harmless))
    asked = PromptSet("continued", tuple(Prompt(id=f"continued-{n}", prompt=row.prompt) for n, row in numbered))
    path = out / "continued.jsonl" if out else None
    rows = []
    for completion in generate(lm, asked.sample(limit, seed), max_new_tokens=tokens, out=path):
        rendered = render(lm.tokenizer, completion.prompt, completion.answer or None)
        for position in range(rendered.prompt_length + 1, len(rendered.ids)):
            if str(lm.tokenizer.decode(rendered.ids[position - 1])).rstrip().endswith(SENTENCE_ENDS):
                part = Rendered(rendered.ids[: position + 1], position)
                rows.append(Lesson(f"{completion.id}-{position}", part))
    return _remembered(lm, rows)


def _remembered(lm: LanguageModel, rows: list[Lesson]) -> list[Lesson]:
    """The rows with the model's distributions at their response tokens, the shortest first."""
    ordered = sorted(rows, key=lambda row: (len(row.rendered.ids), row.id))
    lessons = []
    for start in track(range(0, len(ordered), REMEMBER_BATCH), "Remembering the original model"):
        batch = ordered[start : start + REMEMBER_BATCH]
        teachers = remember(lm, [row.rendered for row in batch])
        lessons += [row._replace(teacher=teacher) for row, teacher in zip(batch, teachers, strict=True)]
    return lessons
