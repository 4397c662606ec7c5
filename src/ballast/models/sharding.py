"""Spread a model over the processes of `torchrun` (FSDP2), so that it need not fit into one of them."""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ballast.errors import UsageError
from ballast.models.language_model import LanguageModel
from ballast.models.tree import block_modules


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
        UsageError: The script was not started by `torchrun` with several processes, or the model is spread already.
    """
    if is_sharded(lm):
        raise UsageError("The model is sharded already; use it as it is.")
    kind = _join_processes()
    if dist.get_world_size() == 1:
        raise UsageError("There is one process, so nothing can be sharded; start at least two with torchrun.")
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for module in (*block_modules(lm.model), lm.model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # Without files no fingerprints are remembered: a process that remembers them would not take part in making them.
    return dataclasses.replace(lm, files=())


def is_sharded(lm: LanguageModel) -> bool:
    """Whether the model is spread over processes."""
    return isinstance(lm.model, FSDPModule)


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
