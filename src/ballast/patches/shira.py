"""A patch as an adapter that PEFT opens: SHiRA, sparse differences added to linear layers.

    W_ij  ->  W_ij + d_ij   for r (rows + columns) entries of each matrix                           (arXiv 2406.13175)

The number of entries is fixed by one r for all matrices, so the places that the patch does not need hold zeros. PEFT
adds in float32 and rounds to the dtype of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ballast.errors import PatchError
from ballast.models import LanguageModel
from ballast.models.open import HUB_ID
from ballast.models.streaming import require_in_memory
from ballast.patches.entries import Entries, bits
from ballast.patches.folder import new_folder
from ballast.patches.patch import Patch
from ballast.patches.swap import check_outcome, patched_parameters, state_of
from ballast.runs import write_json, write_tensors


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter in numbers.

    Attributes:
        rank: r, common to all matrices.
        tensors: Matrices.
        entries: Entries of the patch.
        padding: Places that hold zero because r asks for more entries than the patch has.
        rounded: Entries for which previous value + difference, rounded, is not the patch's value bit for bit.
    """

    rank: int
    tensors: int
    entries: int
    padding: int
    rounded: int


def export_adapter(lm: LanguageModel, patch: Patch, folder: Path | str) -> AdapterInfo:
    """Write a patch as a SHiRA adapter of PEFT, which adds differences where the patch sets values.

    Args:
        lm: The model the patch was made for, with the patch applied or not; it is not changed.
        patch: Changes weights of linear layers only.
        folder: Destination; must not exist or must be empty.

    Raises:
        PatchError: The patch is for another model or damaged, changes a tensor that such an adapter cannot express, or
            the folder is in use.
        RunError: The folder cannot be written.
        ModelError: The model is streamed.
    """
    parameters = patched_parameters(lm.model, patch.header)
    require_in_memory(parameters.values())
    state_of(lm.model, patch.header)
    for name, parameter in parameters.items():
        check_outcome(name, parameter, patch.entries[name], patch.header.tensors[name], "patched")
    _require_linear(lm.model, patch)
    rank = _rank(patch)
    tensors, padding, rounded = {}, 0, 0
    for name, entries in patch.entries.items():
        rows, columns = patch.header.tensors[name].shape
        places = rank * (rows + columns)
        prefix = f"base_model.model.{name.removesuffix('weight')}shira_"
        tensors[f"{prefix}indices"], tensors[f"{prefix}weight"] = _padded(entries, places, rows, columns)
        padding += places - len(entries.indices)
        rounded += _rounded(entries)
    with new_folder(Path(folder), "adapter") as partial:
        write_tensors(partial / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(partial / "adapter_config.json", _config(lm, patch, rank))
    return AdapterInfo(rank, len(patch.entries), patch.info().entries, padding, rounded)


def _require_linear(model: nn.Module, patch: Patch) -> None:
    """Refuse what is not the weight of one linear layer, by name."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    reasons = {}
    for name in patch.entries:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if not isinstance(module, nn.Linear) or leaf != "weight":
            reasons[name] = f"{leaf} of {type(module).__name__}"
        elif owners[id(module.weight)] > 1:
            reasons[name] = "shared by several layers"
    if reasons:
        named = ", ".join(f"{name} ({reason})" for name, reason in sorted(reasons.items())[:3])
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise PatchError(
            f"A SHiRA adapter changes weights of linear layers only, not {named}{more}; write a checkpoint instead "
            "(ballast patch apply)."
        )


def _rank(patch: Patch) -> int:
    """The smallest r that has room for the entries of every matrix."""
    sizes = {name: patch.header.tensors[name].shape for name in patch.entries}
    rank = max(math.ceil(len(patch.entries[name].indices) / sum(size)) for name, size in sizes.items())
    for name, size in sizes.items():
        if rank * sum(size) > math.prod(size):
            raise PatchError(
                f"A SHiRA adapter with room for this patch (r = {rank}) is larger than {name}; write a checkpoint "
                "instead (ballast patch apply)."
            )
    return rank


def _padded(entries: Entries, places: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column indices, (2, places) int32 in row-major order, and differences, (places,) float32."""
    taken = entries.indices.long()
    free = torch.ones(rows * columns, dtype=torch.bool)
    free[taken] = False
    unused = free.nonzero().squeeze(1)[: places - len(taken)]
    flat, order = torch.cat([taken, unused]).sort()
    differences = torch.cat([_differences(entries), torch.zeros(len(unused))])[order]
    return torch.stack([flat // columns, flat % columns]).to(torch.int32), differences


def _differences(entries: Entries) -> torch.Tensor:
    return entries.values.float() - entries.previous.float()


def _rounded(entries: Entries) -> int:
    """How many values are not met by adding the difference in float32 and rounding."""
    reached = (entries.previous.float() + _differences(entries)).to(entries.values.dtype)
    return int((bits(reached) != bits(entries.values)).sum())


def _config(lm: LanguageModel, patch: Patch, rank: int) -> dict[str, object]:
    on_the_hub = not lm.files and HUB_ID.fullmatch(lm.source)  # a path of this machine means nothing elsewhere
    return {
        "peft_type": "SHIRA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lm.source if on_the_hub else None,
        "revision": lm.revision,
        "inference_mode": True,
        "r": rank,
        "target_modules": [name.removesuffix(".weight") for name in sorted(patch.entries)],
        "mask_type": "random",  # PEFT draws a mask and then takes the stored indices in its place
        "fan_in_fan_out": False,
        "init_weights": True,
        "modules_to_save": None,
    }
