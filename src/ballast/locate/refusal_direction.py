"""The refusal direction, and how much of what each weight writes lies along it (arXiv 2406.11717).

In one layer, the direction r is the difference of the mean hidden states of harmful and harmless prompts at their last
token, of length 1. A matrix W (out x in) whose outputs go into the residual stream loses that direction by

    W' = W - r (r^T W),        score[i,j] = | r_i (r^T W)_j | = | W'[i,j] - W[i,j] |.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ballast.errors import NumericalError, PromptError, UsageError
from ballast.locate.last_states import last_states
from ballast.locate.registry import Found, Task, register
from ballast.locate.weights import scores_by_part
from ballast.models.parts import Part
from ballast.models.tree import block_modules
from ballast.prompts import load_prompts
from ballast.regions.metadata import Granularity

WRITERS = ("output", "down")


@register("refusal_direction")
@dataclass(frozen=True)
class RefusalDirection:
    """Settings of the refusal direction.

    Attributes:
        harmless: Harmless prompts; as many as there are harmful ones are drawn with the seed.
        layer: Decoder block behind which the direction is taken; None for the one that separates best.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "Arditi et al., NeurIPS 2024, arXiv 2406.11717"
    fidelity: ClassVar[str] = (
        "reconstruction: difference in means at the last token, orthogonalisation and the first 80 % of layers as in "
        "the paper; the score is the change of each entry by it (ours); deviations: the layer is chosen by separation "
        "in standard deviations, not by steering; other positions of the prompt's end, embeddings and biases are not "
        "taken in; the direction is taken as it is where a norm follows a projection"
    )
    needs: ClassVar[str] = "harmful and harmless prompts"

    harmless: str = "builtin/twins/tune"
    layer: int | None = None

    def score(self, task: Task) -> Found:
        """Score what output and down projections write along the direction; every other weight scores 0."""
        layers = len(block_modules(task.lm.model))
        if self.layer is not None and self.layer not in range(layers):
            raise UsageError(f"There is no layer {self.layer}; choose from 0 to {layers - 1}.")
        harmless = load_prompts(self.harmless).sample(len(task.prompts), task.seed)
        if min(len(task.prompts), len(harmless)) < 2:
            raise PromptError("The refusal direction needs two harmful and two harmless prompts; give more.")
        directions, separations = compared(
            *(last_states(task.lm, prompts, task.batch_size) for prompts in (task.prompts, harmless))
        )
        if not torch.isfinite(separations).all():
            raise NumericalError(
                "The hidden states of harmful and harmless prompts are the same, or those of each set are; use other "
                "or more prompts."
            )
        candidates = separations[: math.ceil(4 * layers / 5)]  # behind the others it is about the next token (paper)
        layer = int(candidates.argmax()) if self.layer is None else self.layer
        scores = scores_by_part(task.lm, lambda part: written_along(directions[layer], task.lm.weight(part.name), part))
        notes: dict[str, Any] = {
            "prompts_used": len(task.prompts),
            "harmless_used": len(harmless),
            "harmless_hash": harmless.hash,
            "direction_layer": layer,
            "separations": [round(value, 4) for value in separations.tolist()],
        }
        return Found(scores, notes)


def compared(harmful: torch.Tensor, harmless: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The direction of each layer and how well it separates.

    Args:
        harmful: (L, n, H) fp32 hidden states.
        harmless: (L, m, H) fp32.

    Returns:
        Directions (L, H) of length 1, and separations (L,): the distance of the two means over the standard deviation
        along the direction, the variance of the two sets averaged.
    """
    difference = harmful.mean(dim=1) - harmless.mean(dim=1)
    directions = difference / difference.norm(dim=1, keepdim=True)
    spread = [torch.einsum("lnh,lh->ln", states, directions).var(dim=1) for states in (harmful, harmless)]
    return directions, difference.norm(dim=1) / ((spread[0] + spread[1]) / 2).sqrt()


def written_along(direction: torch.Tensor, weight: torch.Tensor, part: Part) -> torch.Tensor:
    """The score of each entry of one parameter, fp32 in its shape: its change when `direction` (H,) is taken out."""
    if part.role.rpartition(".")[2] not in WRITERS:
        return torch.zeros(weight.shape, device=weight.device)
    along = direction.to(weight.device)
    if part.orientation == "out_in":
        change = (along @ weight.float()).unsqueeze(-2) * along.unsqueeze(-1)
    else:
        change = (weight.float() @ along).unsqueeze(-1) * along
    return change.abs_()
