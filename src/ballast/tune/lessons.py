"""The rows that hardening trains on: given refusals, and the original model's own answers to harmless prompts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from ballast.errors import PromptError
from ballast.evaluate.answers import generate
from ballast.judges import Judge, Verdict
from ballast.models import LanguageModel
from ballast.progress import track
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import Rendered, check_length, render
from ballast.prompts.refusals import REFUSALS
from ballast.tune.objective import Lesson, remember
from ballast.tune.preference import Rejected, margins

REMEMBER_BATCH = 16
SENTENCE_ENDS = (".", "!", "?")


def refused(refusals: Sequence[PromptSet]) -> Iterator[tuple[Prompt, str]]:
    """Every harmful prompt with its refusal, or with one of three general ones in turn."""
    for number, prompt in enumerate(itertools.chain(*refusals)):
        yield prompt, prompt.response or REFUSALS[number % len(REFUSALS)]


def refusal_lessons(lm: LanguageModel, refusals: Sequence[PromptSet], tokens: int) -> list[Lesson]:
    """One lesson per harmful prompt with its refusal, cut after `tokens` tokens.

    A prompt without a response gets one of three general refusals, in turn.

    Raises:
        PromptError: A prompt is longer than the context.
    """
    lessons = []
    for prompt, refusal in refused(refusals):
        rendered = render(lm.tokenizer, prompt.prompt, refusal)
        check_length(rendered, lm.context, prompt.id)
        kept = rendered._replace(ids=rendered.ids[: rendered.prompt_length + tokens])
        lessons.append(Lesson(prompt.id, kept, pair=prompt.pair))
    return lessons


def preference_lessons(
    lm: LanguageModel, refusals: Sequence[PromptSet], tokens: int, judge: Judge, answer_tokens: int, out: Path | None
) -> list[Lesson]:
    """One lesson per harmful prompt that the model complies with: its refusal, preferred to that very answer.

    Args:
        lm: The original model.
        refusals: As for `refusal_lessons`.
        tokens: Tokens after which refusal and answer are cut.
        judge: Decides which answers comply; prompts with another answer have nothing to prefer a refusal to.
        answer_tokens: Tokens of the answers that the judge reads.
        out: Folder in which the answers are kept.

    Raises:
        PromptError: A prompt is longer than the context, or the model complies with none.
    """
    lessons: list[Lesson] = []
    answers = []
    rows = iter(refusal_lessons(lm, refusals, tokens))
    for prompts in refusals:
        path = out / f"{prompts.slug}.jsonl" if out else None
        found = generate(lm, prompts, max_new_tokens=max(tokens, answer_tokens), out=path)
        judged = judge.judge([row.prompt for row in found], [row.answer for row in found])
        for lesson, completion, verdict in zip(itertools.islice(rows, len(found)), found, judged, strict=True):
            if verdict.verdict is Verdict.COMPLIED and completion.answer:
                answer = render(lm.tokenizer, completion.prompt, completion.answer)
                answers.append(answer._replace(ids=answer.ids[: answer.prompt_length + tokens]))
                lessons.append(lesson)
    if not lessons:
        raise PromptError(
            "The model complies with none of the harmful prompts, so there is no answer to prefer a refusal to; give "
            "other prompts or use the objective cross_entropy."
        )
    known: list[float] = []
    for start in track(range(0, len(lessons), REMEMBER_BATCH), "Remembering the original model"):
        part = slice(start, start + REMEMBER_BATCH)
        known += margins(lm, [row.rendered for row in lessons[part]], answers[part])
    return [
        lesson._replace(rejected=Rejected(answer, margin))
        for lesson, answer, margin in zip(lessons, answers, known, strict=True)
    ]


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
