"""What two patches share, and which entries differ between two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ballast.errors import PatchError
from ballast.models.streaming import require_in_memory
from ballast.patches.entries import LARGEST_INDEX, Entries, bits


@dataclass(frozen=True)
class Conflict:
    """Entries of one tensor that two patches set to different values.

    Attributes:
        entries: How many.
        share: Of the entries of this tensor that any of the patches sets, in (0, 1].
        largest: The largest absolute difference of two such values, in units of the weights.
    """

    entries: int
    share: float
    largest: float


@dataclass(frozen=True)
class PatchDifference:
    """Two patches side by side, as counts of entries.

    Attributes:
        shared: Entries that both change.
        same: Shared entries that both set to the same bits.
        different: Shared entries set to different values.
        only_first: Entries that only the first changes.
        only_second: Entries that only the second changes.
        same_base: Whether the tensors that both change have the same base fingerprint; True if there is none.
        conflicts: The different entries by tensor; a tensor without any is left out.
    """

    shared: int
    same: int
    different: int
    only_first: int
    only_second: int
    same_base: bool
    conflicts: Mapping[str, Conflict]


def disagreement(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Where two tensors of values differ in their bits, (K,) bool, and the largest absolute difference."""
    differ = bits(first) != bits(second) if first.dtype == second.dtype else torch.ones(len(first), dtype=torch.bool)
    gaps = (first.double() - second.double())[differ].abs()
    return differ, float(gaps.max()) if len(gaps) else 0.0


def count_shared(first: Mapping[str, Entries], second: Mapping[str, Entries]) -> tuple[int, dict[str, Conflict]]:
    """The number of entries in both, and by tensor those with different value bits."""
    shared, conflicts = 0, {}
    for name in sorted(first.keys() & second.keys()):
        mine, theirs = first[name], second[name]
        _, left, right = np.intersect1d(
            mine.indices.numpy(), theirs.indices.numpy(), assume_unique=True, return_indices=True
        )
        shared += len(left)
        differ, largest = disagreement(mine.values[left], theirs.values[right])
        if count := int(differ.sum()):
            either = len(mine.indices) + len(theirs.indices) - len(left)
            conflicts[name] = Conflict(count, count / either, largest)
    return shared, conflicts


def differing_entries(base: torch.nn.Module, changed: torch.nn.Module) -> dict[str, Entries]:
    """Every entry whose bits differ between two models of the same architecture, one tensor at a time.

    Raises:
        PatchError: Names, shapes or dtypes differ, or nothing does.
        ModelError: A model is streamed.
    """
    require_in_memory([*base.parameters(), *changed.parameters()])
    before, after = dict(base.named_parameters()), dict(changed.named_parameters())
    alone = sorted(before.keys() ^ after.keys())
    if alone:
        raise PatchError(f"Only one of the two models has {alone[0]}; a patch needs two models of one architecture.")
    found = {}
    for name, parameter in before.items():
        old, new = parameter.detach().cpu().reshape(-1), after[name].detach().cpu().reshape(-1)
        if parameter.shape != after[name].shape or old.dtype != new.dtype:
            raise PatchError(
                f"{name} is {old.dtype} {tuple(parameter.shape)} in one model and {new.dtype} "
                f"{tuple(after[name].shape)} in the other; a patch needs equal shapes and dtypes."
            )
        if len((entries := changed_entries(name, old, new)).indices):
            found[name] = entries
    if not found:
        raise PatchError("The two models have the same weights; there is nothing to make a patch of.")
    return found


def changed_entries(name: str, old: torch.Tensor, new: torch.Tensor) -> Entries:
    """The entries whose bits differ between two flat tensors of one dtype on the CPU; possibly none.

    Raises:
        PatchError: One lies beyond what int32 indices reach.
    """
    indices = (bits(old) != bits(new)).nonzero().squeeze(1)
    if len(indices) and int(indices[-1]) > LARGEST_INDEX:
        raise PatchError(f"{name} has more entries than int32 indices reach; it cannot be patched.")
    return Entries(indices.to(torch.int32), new[indices], old[indices])
