"""Merge a LoRA adapter into a model without touching the weights of a safety region."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ballast.errors import ModelError
from ballast.locate.checkpoints.adapter import LowRank, read_adapter
from ballast.locate.checkpoints.directions import Matrix
from ballast.models import LanguageModel
from ballast.models.streaming import require_in_memory
from ballast.regions import Region
from ballast.tune.protection import Protection


@torch.no_grad()
def merge_protected(lm: LanguageModel, adapter: str | Path, region: Region) -> int:
    """Add an adapter's update to the weights, except those of a region, which keep their bits.

    An adapter that is not merged changes what every weight of its matrices does, so it cannot be protected.

    Args:
        lm: The model that the adapter was trained on; it is changed.
        adapter: Folder that PEFT's `save_pretrained` wrote; plain LoRA.
        region: Located on this model.

    Returns:
        How many weights of the region the adapter would have changed.

    Raises:
        RegionError: The region belongs to another model.
        ModelError: The adapter cannot be read, is for another model, or changes more than projections; or the model is
            streamed.
    """
    parameters = dict(lm.model.named_parameters())
    require_in_memory(parameters.values())
    region.check_model(lm.fingerprints(), {name: value.shape for name, value in parameters.items()})
    protection = Protection(parameters, region.indices)
    merge_adapter(lm, adapter)
    changed = protection.changed()
    protection.restore()
    return changed


def product(_: Matrix, factors: LowRank) -> torch.Tensor:
    """The update of a matrix (out, in), as it was trained."""
    return factors.left @ factors.right


@torch.no_grad()
def merge_adapter(
    lm: LanguageModel, adapter: str | Path, update_of: Callable[[Matrix, LowRank], torch.Tensor] = product
) -> None:
    """Add an adapter's update to all weights that it is for.

    Args:
        lm: The model that the adapter was trained on; it is changed.
        adapter: Folder that PEFT's `save_pretrained` wrote; plain LoRA.
        update_of: Gives what is added to each matrix, (out, in).

    Raises:
        ModelError: As for `merge_protected`.
    """
    parameters = dict(lm.model.named_parameters())
    require_in_memory(parameters.values())
    found = read_adapter(lm, adapter)
    if found.left_out:
        named, reason = min(found.left_out.items())
        raise ModelError(f"{adapter} also changes {named} ({reason}), which this merge would lose; merge it with PEFT.")
    for matrix, factors in found.factors.items():
        name, expert = matrix
        stored = parameters[name] if expert is None else parameters[name][expert]
        update = update_of(matrix, factors).to(stored.device)
        if lm.parts.by_name(name).orientation == "in_out":
            update = update.T
        stored.copy_(stored.float() + update)
