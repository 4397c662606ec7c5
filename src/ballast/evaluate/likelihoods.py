"""Log-probabilities of many given answers, in batches that never change, saved as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ballast.errors import NumericalError, UsageError
from ballast.evaluate.pairing import UtilityRow
from ballast.evaluate.summary import parse_record
from ballast.models import LanguageModel
from ballast.models.likelihood import response_log_probabilities
from ballast.models.memory import memory_errors
from ballast.progress import track
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered
from ballast.runs import JsonLines

LARGEST_BATCH = 64  # sequences
BATCH_TOKENS = 4096  # padding included
BATCH_LOGITS = 1 << 25  # 128 MB in fp32; they are held about four times

RowOf = Callable[[str, Sequence[torch.Tensor]], UtilityRow]


@torch.inference_mode()
def answer_log_probabilities(lm: LanguageModel, rows: Sequence[Rendered]) -> list[torch.Tensor]:
    """Score given answers in one batch; halves the batch when memory runs out.

    Args:
        lm: The model.
        rows: Prompts with their answers.

    Returns:
        For each row the log-probability of every answer token, (R,) fp32 on the CPU, in nats.
    """
    batch = collate(rows, lm.pad_id).to(lm.device)
    try:
        with memory_errors():
            found = response_log_probabilities(lm.model, batch.input_ids, batch.attention_mask, batch.response_mask)
        return list(found.cpu().split([len(row.ids) - row.prompt_length for row in rows]))
    except MemoryError as error:
        if len(rows) == 1:
            raise UsageError(
                f"A prompt with its answer, {len(rows[0].ids)} tokens, does not fit into memory; leave it out or use a "
                "larger machine."
            ) from error
    half = len(rows) // 2
    return answer_log_probabilities(lm, rows[:half]) + answer_log_probabilities(lm, rows[half:])


def scored(
    lm: LanguageModel,
    groups: Mapping[str, Sequence[Rendered]],
    row_of: RowOf,
    *,
    title: str,
    batch_size: int | None = None,
    out: Path | None = None,
) -> list[UtilityRow]:
    """Score all answers and make one row of each group.

    The batches depend on the groups and the vocabulary alone, so that a run that was interrupted gives the same rows.

    Args:
        lm: The model.
        groups: By id of the prompt, the answers to be scored; at least one.
        row_of: Makes the row of a group from its id and the log-probabilities of the tokens of each of its answers.
        title: What is being done, for a reader.
        batch_size: Groups per batch; if None as many as fit the limits of this file.
        out: JSON lines file; rows that it holds already are not computed again.

    Raises:
        NumericalError: A log-probability is not finite.
        RunError: `out` cannot be read or written.
    """
    stored = JsonLines(out) if out else None
    known = [parse_record(row, UtilityRow, str(out)) for row in stored.rows] if stored else []
    found = {row.id: row for row in known}
    batches = batched(groups, lm.model.config.get_text_config().vocab_size, batch_size)
    waiting = [batch for batch in batches if any(identity not in found for identity in batch)]
    for batch in track(waiting, title, len(batches) - len(waiting)):
        scores = iter(answer_log_probabilities(lm, [row for identity in batch for row in groups[identity]]))
        fresh = []
        for identity in batch:
            answers = [next(scores) for _ in groups[identity]]
            if not all(answer.isfinite().all() for answer in answers):
                raise NumericalError(
                    f"The model gives prompt {identity!r} a log-probability that is not finite; check its weights or "
                    "open it with another dtype."
                )
            if identity not in found:
                fresh.append(row_of(identity, answers))
        found.update((row.id, row) for row in fresh)
        if stored:
            stored.append([row.model_dump() for row in fresh])
    return [found[identity] for identity in groups]


def batched(
    groups: Mapping[str, Sequence[Rendered]], vocabulary: int, batch_size: int | None = None
) -> list[list[str]]:
    """Ids in batches of similar length, the longest first: too little memory shows at once.

    A batch takes `batch_size` groups, or as many as keep it within `LARGEST_BATCH` sequences, `BATCH_TOKENS` tokens and
    `BATCH_LOGITS` logits, but at least one.
    """
    batches: list[list[str]] = []
    for identity in sorted(groups, key=lambda identity: (-_longest(groups[identity]), identity)):
        wider = [*batches[-1], identity] if batches else []
        if wider and (len(wider) <= batch_size if batch_size else _fits(wider, groups, vocabulary)):
            batches[-1] = wider
        else:
            batches.append([identity])
    return batches


def _longest(rows: Sequence[Rendered]) -> int:
    return max(len(row.ids) for row in rows)


def _fits(batch: Sequence[str], groups: Mapping[str, Sequence[Rendered]], vocabulary: int) -> bool:
    rows = [row for identity in batch for row in groups[identity]]
    longest = _longest(rows)
    predicted = longest - min(row.prompt_length for row in rows)  # columns whose logits are computed
    return (
        len(rows) <= LARGEST_BATCH
        and len(rows) * longest <= BATCH_TOKENS
        and len(rows) * predicted * vocabulary <= BATCH_LOGITS
    )
