"""Merge a LoRA adapter into a model without touching the weights of a safety region."""

from __future__ import annotations

from pathlib import Path

import torch

from ballast.errors import ModelError
from ballast.locate.checkpoints.adapter import read_adapter
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


@torch.no_grad()
def merge_adapter(lm: LanguageModel, adapter: str | Path) -> None:
    """Add an adapter's update to all weights that it is for.

    Args:
        lm: The model that the adapter was trained on; it is changed.
        adapter: Folder that PEFT's `save_pretrained` wrote; plain LoRA.

    Raises:
        ModelError: As for `merge_protected`.
    """
    parameters = dict(lm.model.named_parameters())
    require_in_memory(parameters.values())
    found = read_adapter(lm, adapter)
    if found.left_out:
        named, reason = min(found.left_out.items())
        raise ModelError(f"{adapter} also changes {named} ({reason}), which this merge would lose; merge it with PEFT.")
    for (name, expert), factors in found.factors.items():
        stored = parameters[name] if expert is None else parameters[name][expert]
        update = (factors.left @ factors.right).to(stored.device)
        if lm.parts.by_name(name).orientation == "in_out":
            update = update.T
        stored.copy_(stored.float() + update)
