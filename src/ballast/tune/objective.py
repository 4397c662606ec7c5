"""What hardening minimises: refusals on harmful prompts, and staying close to the original model on harmless ones.

    L = L_refuse + weight * L_help                                              (SET, arXiv 2604.08297; L_help is ours)

L_refuse is the mean cross-entropy of the refusal's tokens; where a refusal is preferred to another answer, the loss of
the pair stands for each of them (`preference.py`). L_help is the mean over answer tokens of KL(original || current);
the original's distribution is kept as its most likely tokens and the rest's total mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ballast.models import LanguageModel
from ballast.models.likelihood import response_logits
from ballast.prompts.batches import TokenBatch, collate
from ballast.prompts.chat import Rendered
from ballast.tune.preference import Rejected, preference_loss

KEPT_TOKENS = 64
SMALLEST_REST = 1e-6


class Teacher(NamedTuple):
    """The original model's distribution at each token of one answer.

    Attributes:
        tokens: (T, 64) ids of its most likely tokens.
        log_probabilities: (T, 64) fp32, theirs.
    """

    tokens: torch.Tensor
    log_probabilities: torch.Tensor


class Lesson(NamedTuple):
    """One row of a training batch: a refusal to learn, or an answer to keep.

    Attributes:
        id: Names the row in errors.
        rendered: Request and response.
        teacher: The distribution to stay close to; None for a refusal to learn.
        pair: Number that a harmful prompt shares with its harmless twin; None without a twin.
        rejected: What the refusal is to be preferred to; None if it is learnt by itself.
    """

    id: str
    rendered: Rendered
    teacher: Teacher | None = None
    pair: int | None = None
    rejected: Rejected | None = None

    @property
    def tokens(self) -> int:
        """Length of the response."""
        return len(self.rendered.ids) - self.rendered.prompt_length


class Losses(NamedTuple):
    """Sums over the response tokens of one batch, in nats."""

    refuse: torch.Tensor
    help: torch.Tensor


@torch.no_grad()
def remember(lm: LanguageModel, rows: Sequence[Rendered]) -> list[Teacher]:
    """The original model's distributions at the response tokens of `rows`, one batch."""
    batch = collate(rows, lm.pad_id).to(lm.device)
    log_probabilities = _log_probabilities(lm, batch)
    kept = log_probabilities.topk(min(KEPT_TOKENS, log_probabilities.shape[1]), dim=1)
    lengths = batch.response_mask.sum(dim=1).tolist()
    pieces = zip(kept.indices.split(lengths), kept.values.split(lengths), strict=True)
    return [Teacher(tokens.cpu(), values.cpu()) for tokens, values in pieces]


def lesson_losses(lm: LanguageModel, lessons: Sequence[Lesson]) -> Losses:
    """Summed cross-entropy (or preference) of the refusals and summed divergence on the answers of one batch."""
    rejected = [lesson.rejected.rendered for lesson in lessons if lesson.rejected is not None]
    batch = collate([*(lesson.rendered for lesson in lessons), *rejected], lm.pad_id).to(lm.device)
    log_probabilities = _log_probabilities(lm, batch)  # (R, V)
    per_row = batch.response_mask.sum(dim=1).tolist()
    rows = log_probabilities.split(per_row)
    targets = batch.input_ids[batch.response_mask].split(per_row)
    said = [row.gather(1, target.unsqueeze(1)).sum() for row, target in zip(rows, targets, strict=True)]
    others = iter(said[len(lessons) :])
    refuse = help_ = log_probabilities.new_zeros(())
    for lesson, predicted, likelihood in zip(lessons, rows, said, strict=False):  # the rejected answers follow
        if lesson.teacher is not None:
            help_ = help_ + divergence(lesson.teacher, predicted).sum()
        elif lesson.rejected is not None:
            refuse = refuse + lesson.tokens * preference_loss(likelihood - next(others), lesson.rejected.margin)
        else:
            refuse = refuse - likelihood
    return Losses(refuse, help_)


def divergence(teacher: Teacher, log_probabilities: torch.Tensor) -> torch.Tensor:
    """KL(teacher || model) per token, with all tokens that the teacher did not keep merged into one.

    Args:
        teacher: The original's distributions at T tokens.
        log_probabilities: (T, V) fp32, the current model's.

    Returns:
        (T,) in nats; a lower bound of the divergence over all tokens, 0 where both agree.
    """
    kept = teacher.log_probabilities.to(log_probabilities.device)
    current = log_probabilities.gather(1, teacher.tokens.to(log_probabilities.device))
    rest = (1 - kept.exp().sum(dim=1)).clamp(min=SMALLEST_REST)
    current_rest = (1 - current.exp().sum(dim=1)).clamp(min=SMALLEST_REST)
    return (kept.exp() * (kept - current)).sum(dim=1) + rest * (rest.log() - current_rest.log())


def _log_probabilities(lm: LanguageModel, batch: TokenBatch) -> torch.Tensor:
    logits = response_logits(lm.model, batch.input_ids, batch.attention_mask, batch.response_mask)
    return logits.float().log_softmax(dim=1)
