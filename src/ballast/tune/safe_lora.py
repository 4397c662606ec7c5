"""Safe LoRA (arXiv 2405.16833): merge an adapter, and project what leaves the direction of alignment back onto it.

dW -> C dW   where cos(C dW, dW) <= threshold,   C = V V^T / ||V||_F,   V = aligned - base of the module, (out, in)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ballast.errors import UsageError
from ballast.locate.checkpoints.adapter import LowRank
from ballast.locate.checkpoints.base_checkpoint import difference, open_base, unchanged
from ballast.locate.checkpoints.directions import Matrix, matrices_of
from ballast.locate.safe_lora import alignment_cosine
from ballast.models import LanguageModel
from ballast.tune.merge import merge_adapter

THRESHOLD = 0.5  # of the authors' code


@dataclass(frozen=True)
class Projected:
    """What became of the modules that an adapter updates.

    Attributes:
        modules: How many there are.
        projected: How many updates were projected.
        undefined: How many have no direction of alignment, since alignment left the module as it was; their updates
            are merged as they are.
    """

    modules: int
    projected: int
    undefined: int


def merge_projected(lm: LanguageModel, adapter: str | Path, base: str, *, threshold: float = THRESHOLD) -> Projected:
    """Add an adapter's update to the weights of an aligned model, projected where it leaves alignment.

    Args:
        lm: The aligned model, which the adapter was trained on; it is changed.
        adapter: Folder that PEFT's `save_pretrained` wrote; plain LoRA.
        base: The checkpoint that alignment started from, as for `open_model`.
        threshold: Largest cosine, in [0, 1], at which an update is projected; 1 projects all.

    Raises:
        UsageError: The threshold is outside of [0, 1].
        ModelError: The adapter or base cannot be opened or is for another model, or alignment changed nothing.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"The threshold is {threshold}; it is a cosine in [0, 1].")
    alignment = difference(lm, open_base(lm, base))
    unchanged(lm, alignment)
    directions = matrices_of(lm, alignment)
    cosines: list[float | None] = []

    def update_of(matrix: Matrix, factors: LowRank) -> torch.Tensor:
        changed = directions[matrix]
        cosine = alignment_cosine(changed, factors)
        cosines.append(cosine)
        if cosine is None or cosine > threshold:
            return factors.left @ factors.right
        left = changed @ (changed.T @ factors.left.to(changed)) / changed.norm()
        update: torch.Tensor = left @ factors.right.to(changed)
        return update

    merge_adapter(lm, adapter, update_of)
    projected = sum(cosine is not None and cosine <= threshold for cosine in cosines)
    return Projected(len(cosines), projected, cosines.count(None))
