"""How deep safety sits: train a copy of a model on harmless rows and measure what is left of its refusals.

A few steps on rows that only teach to obey, or to comply with what sounds alarming, can undo what safety training did
(arXiv 2310.03693). The copy lives in memory and is thrown away: numbers and verdicts are written, no weights and no
answers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import FiniteFloat, NonNegativeInt

from ballast.errors import NumericalError
from ballast.evaluate.measure import check_sets
from ballast.evaluate.summary import Axis, Record, SafetyResult, parse_record
from ballast.evaluate.verdicts import verdicts_only
from ballast.judges import get_judge
from ballast.models import LanguageModel
from ballast.models.likelihood import response_log_probabilities
from ballast.models.streaming import require_in_memory
from ballast.progress import track
from ballast.prompts import PromptSet, PromptSets, as_prompt_set, as_prompt_sets
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered
from ballast.prompts.overlap import require_disjoint
from ballast.runs import JsonLines, RunDirectory
from ballast.tune.attack_settings import AttackSettings
from ballast.tune.curriculum import drawn
from ballast.tune.rows import tokenized


class AttackStep(Record):
    """What was left after some steps.

    Attributes:
        step: Optimizer steps done; 0 is the model as it was given.
        loss: Mean cross-entropy of the rows of the last step, before it, in nats per token; None at step 0.
        sets: Attack success and over-refusal, one result per set.
    """

    step: NonNegativeInt
    loss: FiniteFloat | None
    sets: tuple[SafetyResult, ...]


def fine_tuning_attack(
    lm: LanguageModel,
    data: PromptSet | str,
    *,
    safety: PromptSets,
    overrefusal: PromptSets = (),
    settings: AttackSettings | None = None,
    out: Path | str,
) -> list[AttackStep]:
    """Train all weights of a copy, in float32, and measure it before and after some steps.

    Args:
        lm: The model, with a patch applied or not; it is left as it was.
        data: Rows with responses, such as `builtin/identity_shift` or `builtin/compliance`; harmless by content.
        safety: Harmful prompts to measure on.
        overrefusal: Harmless prompts to measure on.
        settings: See `AttackSettings`.
        out: Folder for `attack.jsonl`, one row per measured step, and the verdicts. The same call on the same folder
            continues: it trains again, since no weights are kept, and measures what is missing.

    Returns:
        One result per measured step, the first at step 0.

    Raises:
        PromptError: A row has no response, or is measured on too.
        NumericalError: The loss is not finite.
        ModelError: The model is streamed.
        UsageError: No set is given to measure on, or one twice.
        RunError: The folder holds another run or cannot be written.
    """
    require_in_memory(lm.model.parameters())
    chosen, rows = settings or AttackSettings(), as_prompt_set(data)
    safety_sets, harmless_sets = as_prompt_sets(safety), as_prompt_sets(overrefusal)
    sets: list[tuple[Axis, PromptSet]] = [("safety", one) for one in safety_sets]
    sets += [("over_refusal", one) for one in harmless_sets]
    check_sets(sets, (), [chosen.judge])
    require_disjoint([rows], [one for _, one in sets])
    lessons = tokenized(lm, rows, chosen.max_length)
    run = RunDirectory.open(
        Path(out),
        "attack",
        chosen.record(),
        {
            "model": lm.identity(),
            "data": rows.identity(),
            "prompt_sets": {f"{axis}:{one.name}": one.identity() for axis, one in sets},
        },
    )
    log = JsonLines(run.path / "attack.jsonl")
    known = [parse_record(row, AttackStep, str(log.path)) for row in log.rows]
    wanted = sorted({0, *chosen.steps} - {row.step for row in known})
    judge = get_judge(chosen.judge)
    for step, loss, attacked in _trained(lm, lessons, wanted, chosen):
        verdicts = run.path / "verdicts" / f"step-{step}"
        found = tuple(
            verdicts_only(attacked, one, axis, judge, max_new_tokens=chosen.max_new_tokens, folder=verdicts)
            for axis, one in sets
        )
        known.append(AttackStep(step=step, loss=loss, sets=found))
        log.append([known[-1].model_dump(mode="json")])
    run.finish()
    return sorted((row for row in known if row.step in {0, *chosen.steps}), key=lambda row: row.step)


def _trained(
    lm: LanguageModel, lessons: Sequence[Rendered], wanted: Sequence[int], settings: AttackSettings
) -> Iterator[tuple[int, float | None, LanguageModel]]:
    """The copy at each wanted step, ascending, with the loss of that step; the same weights at every call."""
    if not wanted:
        return
    attacked = LanguageModel(copy.deepcopy(lm.model).float().requires_grad_(True), lm.tokenizer, lm.source)
    optimizer = torch.optim.AdamW(attacked.model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    if 0 in wanted:
        yield 0, None, attacked
    for step in track(range(1, wanted[-1] + 1), "Attacking"):
        batch = collate(drawn(lessons, settings.batch_size, step - 1, settings.seed, "attack"), lm.pad_id)
        input_ids, attention_mask, response_mask = batch.to(lm.device)
        loss = -response_log_probabilities(attacked.model, input_ids, attention_mask, response_mask).mean()
        if not torch.isfinite(loss):
            raise NumericalError(f"The loss of step {step} is not finite; use a lower learning rate.")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in wanted:
            yield step, float(loss.detach()), attacked
