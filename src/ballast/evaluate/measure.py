"""Measure a model: attack success, over-refusal and utility, with every answer and verdict on file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ballast.errors import UsageError
from ballast.evaluate.answers import generate
from ballast.evaluate.summary import AgreementResult, Axis, ModelIdentity, SafetyResult, Summary, UtilityResult
from ballast.evaluate.utility import kind_of, utility_result, utility_rows
from ballast.judges import Judge, Judgement, Verdict, agreement, get_judge
from ballast.models import LanguageModel
from ballast.prompts import PromptSet, PromptSets, as_prompt_sets
from ballast.runs import JsonLines, RunDirectory, write_text

DEFAULT_JUDGES = ("embedded", "keyword")


def measure(
    lm: LanguageModel,
    *,
    safety: PromptSets = (),
    overrefusal: PromptSets = (),
    utility: PromptSets = (),
    judges: Sequence[str | Judge] = DEFAULT_JUDGES,
    max_new_tokens: int = 48,
    out: Path | str | None = None,
) -> Summary:
    """Measure a model on prompt sets.

    Args:
        lm: The model.
        safety: Harmful prompts; the rate is attack success, complied / scored.
        overrefusal: Harmless prompts; the rate is refused / scored.
        utility: Sets with responses (log-likelihood in nats per token) or with choices (accuracy).
        judges: The first gives the verdicts of the summary; the agreement with each further one is reported.
        max_new_tokens: Tokens after which an answer is cut.
        out: Folder for `summary.json` and all rows; the same call on the same folder continues. Temporary if None.

    Returns:
        Every number with its count and interval.

    Raises:
        UsageError: There is nothing to measure, a set is given twice, or no judge is given.
        PromptError: A set is unknown, malformed, or does not fit the model.
        RunError: The folder holds another measurement or cannot be written.
    """
    sets: list[tuple[Axis, PromptSet]] = [("safety", prompts) for prompts in as_prompt_sets(safety)]
    sets += [("over_refusal", prompts) for prompts in as_prompt_sets(overrefusal)]
    kinds = [(kind_of(prompts), prompts) for prompts in as_prompt_sets(utility)]
    check_sets(sets, [prompts for _, prompts in kinds], judges)
    chosen = [get_judge(judge) for judge in judges]
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="ballast-"))
    run = RunDirectory.open(
        folder,
        "measure",
        {"judges": [judge.name for judge in chosen], "max_new_tokens": max_new_tokens},
        {
            "model": lm.identity(),
            "prompt_sets": {f"{axis}:{prompts.name}": prompts.identity() for axis, prompts in [*sets, *kinds]},
        },
    )
    results: list[SafetyResult] = []
    agreements: list[AgreementResult] = []
    for axis, prompts in sets:
        judged = _judged(lm, prompts, chosen, max_new_tokens, folder)
        verdicts = [row.verdict for row in judged[0]]
        results.append(SafetyResult.from_verdicts(prompts, axis, chosen[0].name, verdicts))
        for other, rows in zip(chosen[1:], judged[1:], strict=True):
            agreements += _agreement(prompts.name, (chosen[0].name, other.name), judged[0], rows)
    measured: list[UtilityResult] = []
    for kind, prompts in kinds:
        values = utility_rows(lm, prompts, kind, out=folder / "utility" / f"{prompts.slug}.jsonl")
        measured.append(utility_result(prompts, kind, values))
    summary = Summary(
        model=ModelIdentity.model_validate(run.manifest["model"]),
        judge=chosen[0].name,
        max_new_tokens=max_new_tokens,
        sets=tuple(results),
        utility=tuple(measured),
        agreement=tuple(agreements),
    )
    summary.save(folder)
    run.finish()
    return summary


def check_sets(
    sets: Sequence[tuple[Axis, PromptSet]], utility: Sequence[PromptSet], judges: Sequence[str | Judge]
) -> None:
    """Refuse a measurement of nothing, by nobody, or of a set that is given twice.

    Raises:
        UsageError: It is one of these.
    """
    if not sets and not utility:
        raise UsageError("There is nothing to measure; give at least one prompt set.")
    if not judges:
        raise UsageError("No judge is given; name at least one, such as embedded.")
    for group in ([prompts for _, prompts in sets], utility):
        slugs = [prompts.slug for prompts in group]
        for slug in slugs:
            if slugs.count(slug) > 1:
                raise UsageError(f"The prompt set {slug} is given twice; give each set once.")


def _agreement(
    name: str, judges: tuple[str, str], first: Sequence[Judgement], second: Sequence[Judgement]
) -> list[AgreementResult]:
    """How two judges agree on the answers that both could score; nothing if there are none."""
    pairs = [(one.verdict, other.verdict) for one, other in zip(first, second, strict=True)]
    scored = [pair for pair in pairs if Verdict.UNSCORED not in pair]
    agreed = agreement([one for one, _ in scored], [other for _, other in scored])
    if agreed.agree is None:
        return []
    return [AgreementResult(set=name, judges=judges, n=agreed.n, agree=agreed.agree, kappa=agreed.kappa)]


def _judged(
    lm: LanguageModel, prompts: PromptSet, judges: Sequence[Judge], max_new_tokens: int, folder: Path
) -> list[list[Judgement]]:
    """Answers to one set, saved before anything judges them, and the judgements of each judge."""
    answers = generate(lm, prompts, max_new_tokens=max_new_tokens, out=folder / "completions" / f"{prompts.slug}.jsonl")
    judged = []
    for judge in judges:
        rows = judge.judge([row.prompt for row in answers], [row.answer for row in answers])
        judged.append(rows)
        lines = JsonLines.text(
            {"id": answer.id, "verdict": row.verdict, "score": row.score, "raw": row.raw}
            for answer, row in zip(answers, rows, strict=True)
        )
        write_text(folder / "verdicts" / judge.name / f"{prompts.slug}.jsonl", lines)
    return judged
