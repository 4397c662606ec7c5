"""Gradients of a model that is spread over processes, batch by batch instead of summed.

A sum of floating-point numbers depends on its order, and reduce-scatter would add the gradients of all processes to
each other before they are added to what was there. So they are exchanged as they are: every process gets its rows of
each of them and can add them in the order of the batches, as one process does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from ballast.models.language_model import LanguageModel
from ballast.shards import own_part

Batch = TypeVar("Batch")


def turns_of(batches: Sequence[Batch]) -> list[Sequence[Batch]]:
    """The batches in groups that the processes run at the same time, one each; the last group may be smaller."""
    processes = dist.get_world_size()
    return [batches[start : start + processes] for start in range(0, len(batches), processes)]


def own_of(turn: Sequence[Batch]) -> Batch:
    """What this process runs of a group; if nothing is left to it one runs again, whose gradient is not to be added."""
    return turn[min(dist.get_rank(), len(turn) - 1)]


class Exchange:
    """Takes the place of reduce-scatter: a process gets its rows of the gradients of each process, not their sum."""

    def __init__(self, lm: LanguageModel) -> None:
        """Let the gradients of a sharded model be exchanged this way from now on, unscaled."""
        comm: Any = self
        for module in lm.model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(comm)
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # together with the factor: no scaling
                module.set_reduce_scatter_unused_params(True)  # an expert may have no token in one process only

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for the gradients of one block."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        """Exchange the gradients of one block, (processes * n,); FSDP cuts single ones out of the output."""
        self._received = torch.empty_like(input_tensor).view(group.size(), -1)  # (processes, n)
        dist.all_to_all_single(self._received.view(-1), input_tensor, group=group)
        self._cut_from = output_tensor
        output_tensor.copy_(self._received[group.rank()])

    def parts(self, gradient: torch.Tensor) -> torch.Tensor:
        """The rows that this process holds of one parameter's gradient in each process, (processes, *rows)."""
        own = own_part(gradient)
        assert own.untyped_storage().data_ptr() == self._cut_from.untyped_storage().data_ptr()
        start = own.storage_offset()
        return self._received[:, start : start + own.numel()].view(len(self._received), *own.shape)
