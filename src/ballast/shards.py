"""Tensors whose rows are spread over the processes of `torchrun`; a plain tensor is held by every process alone.

A spread tensor is a DTensor with the placement `Shard(0)`, as `fully_shard` makes it: process after process holds the
next rows, so its part is one run of entries in flat C order. All functions that communicate must be called by every
process, in the same order.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ballast.errors import ModelError

Integers = NDArray[np.signedinteger[Any]]


def mesh_of(tensor: torch.Tensor) -> DeviceMesh | None:
    """The processes over which a tensor is spread; None for a plain tensor.

    Raises:
        ModelError: It is spread in another way than by rows.
    """
    if not isinstance(tensor, DTensor):
        return None
    if tensor.placements != (Shard(0),):
        raise ModelError(
            f"A weight is spread over processes as {tensor.placements}, not by rows; shard the model with "
            "ballast.models.sharded."
        )
    return tensor.device_mesh


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The rows that this process holds, sharing memory; of a plain tensor all."""
    return cast("DTensor", tensor.detach()).to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: torch.Tensor) -> int:
    """Which row of the whole tensor is the first that this process holds; the number of rows if it holds none."""
    mesh = mesh_of(tensor)
    if mesh is None:
        return 0
    height = math.ceil(tensor.shape[0] / mesh.size())  # as torch.chunk divides
    return min(mesh.get_local_rank() * height, tensor.shape[0])


def first_entry(tensor: torch.Tensor) -> int:
    """The flat C-order index, in the whole tensor, of the first entry that this process holds."""
    return first_row(tensor) * math.prod(tensor.shape[1:])


def is_own(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(k,) bool: which of the flat indices (k,) of a whole tensor are of entries that this process holds."""
    first = first_entry(tensor)
    return (indices >= first) & (indices < first + own_part(tensor).numel())


def own_indices(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Those of the flat indices (k,) of a whole tensor that this process holds, as flat indices of `own_part`."""
    if mesh_of(tensor) is None:
        return indices
    return indices[is_own(tensor, indices)] - first_entry(tensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the parts of all processes, on each of them; communicates."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_as(tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """A tensor of which this process holds `part`, in the shape of `own_part(tensor)`, spread as `tensor` is."""
    mesh = mesh_of(tensor)
    if mesh is None:
        return part
    return DTensor.from_local(part, mesh, (Shard(0),), run_check=False, shape=tensor.shape, stride=tensor.stride())


def summed(counts: NDArray[np.int64], mesh: DeviceMesh | None) -> NDArray[np.int64]:
    """Counts of all processes added up; communicates."""
    if mesh is None:
        return counts
    total = torch.from_numpy(counts).to(mesh.device_type)
    dist.all_reduce(total, group=mesh.get_group())
    return total.cpu().numpy()


def joined(own: Integers, mesh: DeviceMesh | None) -> Integers:
    """The (k,) integers of all processes one after the other; communicates."""
    if mesh is None:
        return own
    return joined_tensors(torch.from_numpy(own).to(mesh.device_type), mesh).cpu().numpy()


def joined_tensors(part: torch.Tensor, mesh: DeviceMesh | None) -> torch.Tensor:
    """The (k,) tensors of all processes one after the other; communicates."""
    if mesh is None:
        return part
    lengths = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(mesh.size())]
    dist.all_gather(lengths, torch.tensor([len(part)], device=part.device), group=mesh.get_group())
    longest = max(map(int, lengths))
    received = [part.new_zeros(longest) for _ in lengths]
    dist.all_gather(received, torch.nn.functional.pad(part, (0, longest - len(part))), group=mesh.get_group())
    return torch.cat([piece[: int(length)] for piece, length in zip(received, lengths, strict=True)])
