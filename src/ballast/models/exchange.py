"""Gradients of a model that is spread over processes, batch by batch instead of summed.

A sum of floating-point numbers depends on its order, and reduce-scatter would add the gradients of all processes to
each other before they are added to what was there. So they are exchanged as they are: every process gets its rows of
each of them and can add them in the order of the batches, as one process does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from ballast.models.language_model import LanguageModel
from ballast.models.sharding import is_sharded
from ballast.shards import own_part

Batch = TypeVar("Batch")


class Own(NamedTuple, Generic[Batch]):
    """What a process runs of a group.

    Attributes:
        batch: The batch.
        counts: Whether it is to be added. If nothing is left to this process, a batch runs in it once more: running a
            block takes all processes.
    """

    batch: Batch
    counts: bool


def turns_of(lm: LanguageModel, batches: Sequence[Batch]) -> list[Sequence[Batch]]:
    """The batches in groups that the processes run at the same time, one each; the last group may be smaller."""
    processes = dist.get_world_size() if is_sharded(lm) else 1
    return [batches[start : start + processes] for start in range(0, len(batches), processes)]


def own_of(lm: LanguageModel, turn: Sequence[Batch]) -> Own[Batch]:
    """What this process runs of a group."""
    rank = dist.get_rank() if is_sharded(lm) else 0
    return Own(turn[min(rank, len(turn) - 1)], rank < len(turn))


def added_up(lm: LanguageModel, *values: float) -> list[float]:
    """Each value summed over the processes; communicates."""
    if not is_sharded(lm):
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=lm.device)
    dist.all_reduce(total)
    return total.tolist()


def smallest(lm: LanguageModel, value: int) -> int:
    """The smallest of the processes' values; communicates."""
    if not is_sharded(lm):
        return value
    least = torch.tensor(value, device=lm.device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return int(least)


@contextmanager
def exchanged(lm: LanguageModel) -> Iterator[Exchange]:
    """Let a sharded model exchange its gradients inside the block, unscaled; behind it they are averaged again."""
    exchange = Exchange()
    modules = [module for module in lm.model.modules() if isinstance(module, FSDPModule)]

    def reduce(*, comm: Any, factor: Any, plain_sums: bool) -> None:
        for module in modules:
            module.set_custom_reduce_scatter(comm)
            module.set_gradient_divide_factor(factor)
            module.set_force_sum_reduction_for_comms(plain_sums)  # together with the factor 1: no scaling
            module.set_reduce_scatter_unused_params(plain_sums)  # an expert may have no token in one process only

    reduce(comm=exchange, factor=1.0, plain_sums=True)
    try:
        yield exchange
    finally:
        exchange.ended = True
        reduce(comm=exchange, factor=None, plain_sums=False)


class Exchange:
    """Takes the place of reduce-scatter: a process gets its rows of the gradients of each process, not their sum."""

    def __init__(self) -> None:
        """Exchange until `ended`."""
        self.ended = False

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
        if self.ended:  # FSDP takes no reduce-scatter back
            dist.reduce_scatter_tensor(output_tensor, input_tensor, op=op, group=group)
            return
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
