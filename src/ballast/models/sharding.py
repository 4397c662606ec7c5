"""Spread a model over the processes of `torchrun` (FSDP2), so that it need not fit into one of them.

Every process runs the same rows and keeps its own part of each gradient that it computed. Nothing is averaged, so the
gradients have the bits that one process computes, whatever the number of processes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ballast.errors import UsageError
from ballast.models.language_model import LanguageModel
from ballast.models.tree import block_modules


class OwnPart:
    """Takes the place of reduce-scatter where all processes have the same gradients: each keeps its part."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for one group of gradients."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        """Copy the part of this process, (n,), out of the gradients, (processes * n,)."""
        output_tensor.copy_(input_tensor.view(group.size(), -1)[group.rank()])


def sharded(lm: LanguageModel) -> LanguageModel:
    """Spread a model's weights over all processes, by rows; each decoder block is put together when it runs.

    Call it on every process, with the same model, opened on the CPU; with CUDA each block is moved to this process's
    GPU as it is spread. What is called with the result must also be called on every process: other processes wait.
    The process group is made if there is none; ending it (`torch.distributed.destroy_process_group`) is the caller's.

    Args:
        lm: The model. Its weights are replaced, so do not use it afterwards.

    Returns:
        The same model, spread. `ballast.locate` and the selection give what they give for one process.

    Raises:
        UsageError: The script was not started by `torchrun`, or the model is spread already.
    """
    if isinstance(lm.model, FSDPModule):
        raise UsageError("The model is sharded already; use it as it is.")
    mesh = init_device_mesh(_join_processes(), (dist.get_world_size(),))
    own_part: Any = OwnPart()
    for module in (*block_modules(lm.model), lm.model):
        spread = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        spread.set_custom_reduce_scatter(own_part)
        spread.set_gradient_divide_factor(1.0)
        spread.set_force_sum_reduction_for_comms(True)  # with a factor of 1: gradients are not scaled
    # Without files no fingerprints are remembered: a process that remembers them would not take part in making them.
    return dataclasses.replace(lm, files=())


def _join_processes() -> str:
    """Join the processes that `torchrun` started, if that was not done; the type of device they compute on."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            raise UsageError("A sharded model needs several processes; start the script with torchrun.")
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    return kind
