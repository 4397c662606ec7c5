"""Sums of gradients on a model that is spread over processes: the batches are dealt out, the sums are those of one.

A sum of floating-point numbers depends on its order, and reduce-scatter would add the gradients of all processes to
each other before they are added to the sum. So they are exchanged as they are: every process gets its rows of each of
them, and adds them to its rows of the sum in the order of the batches, as one process does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from ballast.errors import ModelError, UsageError
from ballast.locate.engine import Fold, batched, eligible_parameters, only_trainable, weighted_likelihood, zeros
from ballast.locate.inputs import Reader
from ballast.locate.registry import Method, Task
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel
from ballast.progress import track
from ballast.shards import mesh_of, own_part, summed

# They ask for sums of gradients, or look at each weight and its matrix; the others read inputs or answers.
WORKING = ("esi", "snip", "gradient", "gradient_times_weight", "magnitude", "sigma")


def is_sharded(lm: LanguageModel) -> bool:
    """Whether the model is spread over processes."""
    return isinstance(lm.model, FSDPModule)


def require_sharded_method(task: Task, method: Method) -> None:
    """Make sure that what is asked for works on a sharded model.

    Raises:
        UsageError: The method or its setting does not, or an interrupted pass is to be continued.
    """
    if method.name not in WORKING or getattr(method, "estimator", "reference_answer") != "reference_answer":
        raise UsageError(
            f"The method {method.name} with these settings does not work on a sharded model; use one of "
            f"{', '.join(WORKING)}, and of esi the estimator reference_answer."
        )
    if task.checkpoint:
        raise UsageError("A pass over a sharded model cannot be continued after an interruption; give no checkpoint.")


class PassesOverProcesses:
    """Makes the passes that methods ask for, the batches being dealt out to the processes in turn."""

    def gradients(self, task: Task, rows: Sequence[WeightedRow], fold: Fold) -> dict[str, torch.Tensor]:
        """See `Task.gradients`; the sums are spread as the parameters are.

        For `absolute` each row is a batch of its own, so that its gradient is known.

        Raises:
            NumericalError: A loss is not finite; only in the process that runs the rows.
            ModelError: No gradient reached a parameter.
        """
        parameters = eligible_parameters(task.lm)
        sums = zeros(parameters)
        batches = batched(rows, task.batch_size if fold == "sum" else 1)
        rank, processes = dist.get_rank(), dist.get_world_size()
        turns = [batches[start : start + processes] for start in range(0, len(batches), processes)]
        exchange = Exchange(task.lm)

        def consume(name: str) -> None:
            gradient = parameters[name].grad
            assert gradient is not None
            for part in exchange.parts(gradient)[: len(turn)]:
                own_part(sums[name]).add_(part if fold == "sum" else part.abs())
            parameters[name].grad = None

        with only_trainable(task.lm.model, set(parameters)):
            hooks = [
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: consume(name))
                for name, parameter in parameters.items()
            ]
            try:
                for turn in track(turns, "Gradients"):
                    # A process that the last turn leaves without a batch runs one again, which is not added.
                    weighted_likelihood(task.lm, turn[min(rank, len(turn) - 1)]).backward()
            finally:
                for hook in hooks:
                    hook.remove()
        _require_gradients(sums)
        return sums

    def inputs(self, task: Task, rows: Sequence[WeightedRow], reader: Reader) -> None:
        """Not made, see `require_sharded_method`."""
        raise NotImplementedError


def _require_gradients(sums: dict[str, torch.Tensor]) -> None:
    own = np.array([int(own_part(value).any()) for value in sums.values()])
    found = summed(own, mesh_of(next(iter(sums.values()))))
    missed = [name for name, processes in zip(sums, found, strict=True) if not processes]
    if missed:
        raise ModelError(f"No gradient reached {len(missed)} parameters ({missed[0]}); the model does not use them.")


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
