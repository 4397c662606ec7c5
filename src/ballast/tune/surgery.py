"""Gradient surgery: a step on the task must not lower, to first order, the likelihood of refusals.

    g := g - (<g, s> / <s, s>) s    if <g, s> < 0                      (projection of conflicting gradients, 2001.06782)

with g the gradient of the task's loss and s that of -S, S the mean log-likelihood of the tokens of refusals, over all
weights.
What is projected is the gradient; an optimizer that scales each weight by itself, such as AdamW, need not keep to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ballast.models.likelihood import response_log_probabilities
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered
from ballast.tune.curriculum import drawn


class GradientSurgery(TrainerCallback):
    """Takes out of every n-th step what would make refusals less likely.

    For the Trainer of transformers and those built on it. Holds a second gradient of the model while it looks.

    Attributes:
        projected: How many steps had something taken out.
    """

    def __init__(
        self, refusals: Sequence[Rendered], pad_id: int, *, rows: int = 4, every: int = 1, seed: int = 0
    ) -> None:
        """Look at some refusals at every n-th step.

        Args:
            refusals: Harmful prompts with refusals; a step looks at the next ones in passes over all.
            pad_id: Any token id; padding is masked.
            rows: Refusals a step.
            every: n; the other steps are left as they are.
            seed: Of the order of the refusals.
        """
        self.projected = 0
        self._refusals, self._pad_id, self._rows, self._every, self._seed = refusals, pad_id, rows, every, seed

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Project the gradient that the optimizer is about to use."""
        if state.global_step % self._every:
            return
        batch = drawn(self._refusals, self._rows, state.global_step // self._every, self._seed, "surgery")
        parameters = [value for value in named["model"].parameters() if value.grad is not None]
        self.projected += project(parameters, refusal_gradient(named["model"], batch, self._pad_id, parameters))


def refusal_gradient(
    model: PreTrainedModel, refusals: Sequence[Rendered], pad_id: int, parameters: Sequence[Parameter]
) -> list[torch.Tensor]:
    """The gradient of -S on one batch, in the shape of each parameter; their `.grad` is left as it is."""
    batch = collate(refusals, pad_id).to(parameters[0].device)
    score = response_log_probabilities(model, batch.input_ids, batch.attention_mask, batch.response_mask).mean()
    return list(torch.autograd.grad(-score, parameters, allow_unused=True, materialize_grads=True))


@torch.no_grad()
def project(parameters: Sequence[Parameter], other: Sequence[torch.Tensor]) -> bool:
    """Make the gradients of parameters orthogonal to another one, if they point against it.

    Args:
        parameters: With their gradients, which are changed in place.
        other: A tensor in the shape of each; all of them together are one direction.

    Returns:
        Whether they did.
    """
    along = _inner([value.grad for value in parameters if value.grad is not None], other)
    square = _inner(other, other)
    if along >= 0 or square == 0:
        return False
    for value, direction in zip(parameters, other, strict=True):
        assert value.grad is not None
        value.grad.sub_(direction, alpha=along / square)
    return True


def _inner(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """The inner product of two lists of tensors as vectors, each tensor in fp32, their sum in fp64."""
    return sum(
        float(torch.dot(one.float().flatten(), two.float().flatten())) for one, two in zip(first, second, strict=True)
    )
