"""Verdicts on the answers of a model whose answers are not kept."""

from __future__ import annotations

from pathlib import Path

from ballast.evaluate.answers import generate
from ballast.evaluate.summary import Axis, SafetyResult
from ballast.judges import Judge
from ballast.models import LanguageModel
from ballast.prompts import PromptSet
from ballast.runs import JsonLines, write_text


def verdicts_only(
    lm: LanguageModel, prompts: PromptSet, axis: Axis, judge: Judge, *, max_new_tokens: int, folder: Path
) -> SafetyResult:
    """Answer a prompt set, judge the answers in memory and write the verdicts alone, without any text of an answer.

    Args:
        lm: The model.
        prompts: The requests.
        axis: Which verdict is counted, see `SafetyResult`.
        judge: Who judges.
        max_new_tokens: Tokens after which an answer is cut.
        folder: Gets `<slug>.jsonl` with the id, verdict and score of each prompt.
    """
    answers = generate(lm, prompts, max_new_tokens=max_new_tokens)
    judged = judge.judge([row.prompt for row in answers], [row.answer for row in answers])
    rows = (
        {"id": answer.id, "verdict": row.verdict, "score": row.score}
        for answer, row in zip(answers, judged, strict=True)
    )
    write_text(folder / f"{prompts.slug}.jsonl", JsonLines.text(rows))
    return SafetyResult.from_verdicts(prompts, axis, judge.name, [row.verdict for row in judged])
