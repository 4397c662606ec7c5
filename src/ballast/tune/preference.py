"""Preferring a refusal to the model's own compliant answer (DPO, arXiv 2305.18290, equation 7).

    loss = -log sigmoid(BETA * (margin - margin of the original model)),   margin = log p(refusal) - log p(answer)

Both are sums over the first tokens, given the harmful prompt. The original's margins are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid

from ballast.models import LanguageModel
from ballast.models.likelihood import response_log_probabilities
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered

BETA = 0.1


class Rejected(NamedTuple):
    """What a refusal is preferred to.

    Attributes:
        rendered: The prompt with the answer that complies.
        margin: log p(refusal) - log p(answer) under the original model, in nats.
    """

    rendered: Rendered
    margin: float


def preference_loss(margin: torch.Tensor, original: float) -> torch.Tensor:
    """The loss of one pair, in nats, from its margin now and under the original model."""
    return -logsigmoid(BETA * (margin - original))


@torch.no_grad()
def margins(lm: LanguageModel, preferred: Sequence[Rendered], rejected: Sequence[Rendered]) -> list[float]:
    """How much likelier the preferred response of each pair is, log p - log p in nats; one batch."""
    batch = collate([*preferred, *rejected], lm.pad_id).to(lm.device)
    found = response_log_probabilities(lm.model, batch.input_ids, batch.attention_mask, batch.response_mask)
    sums = torch.stack([part.sum() for part in found.split(batch.response_mask.sum(dim=1).tolist())])
    return [float(value) for value in sums[: len(preferred)] - sums[len(preferred) :]]
