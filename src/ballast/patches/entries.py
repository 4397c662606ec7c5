"""The changed entries of one tensor, and what makes them valid."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch

from ballast.errors import PatchError

LARGEST_INDEX = torch.iinfo(torch.int32).max
INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Entries(NamedTuple):
    """K entries of one weight tensor, on the CPU.

    Attributes:
        indices: (K,) int32, positions in the flattened (row-major) tensor, strictly ascending.
        values: (K,) in the tensor's dtype, what they are after applying.
        previous: (K,) in the tensor's dtype, what they were before.
    """

    indices: torch.Tensor
    values: torch.Tensor
    previous: torch.Tensor


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, so that -0.0 differs from 0.0 and a NaN equals itself."""
    return tensor.view(INTEGER_OF_SIZE[tensor.element_size()])


def check_entries(name: str, entries: Entries, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Make sure that entries can be written into a tensor of this shape and dtype.

    Raises:
        PatchError: They are not sorted, are out of range, have another dtype or are not finite.
    """
    indices, values, previous = entries
    size = prod(shape)
    if size > LARGEST_INDEX:
        raise PatchError(f"{name} has {size} entries, more than int32 indices reach; leave it out of the patch.")
    if not (indices.ndim == values.ndim == previous.ndim == 1 and len(indices) == len(values) == len(previous)):
        raise PatchError(f"The patch has indices, values and previous of unequal length for {name}; make it again.")
    if len(indices) == 0:
        raise PatchError(f"The patch lists {name} without any entry; make it again without that tensor.")
    if indices.dtype != torch.int32 or values.dtype != dtype or previous.dtype != dtype:
        raise PatchError(f"The patch of {name} must have int32 indices and {dtype} values and previous; make it again.")
    if not bool((indices[1:] > indices[:-1]).all()):
        raise PatchError(f"The indices of {name} are not sorted or are repeated; make the patch again.")
    if int(indices[0]) < 0 or int(indices[-1]) >= size:
        raise PatchError(f"The patch has indices of {name} outside its {size} entries; make it again.")
    if not bool(torch.isfinite(values.float()).all()):
        raise PatchError(f"The patch has values of {name} that are not finite numbers; make it again.")
