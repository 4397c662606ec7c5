"""What each process of `torchrun` does for `test_sharded.py`: `... -m tests.tune.sharded_process FOLDER`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ballast.errors import ProtectionError, UsageError
from ballast.judges import JUDGES
from ballast.locate import locate
from ballast.models import LanguageModel, sharded
from ballast.regions import Region
from ballast.shards import own_part, whole
from ballast.tune import SafetyPreserving
from tests.tune.world import region_of, run
from tests.worlds import REFUSALS, REQUESTS, OpeningJudge, prompt_set, tiny_lm

STEPS = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def world(dtype: torch.dtype) -> tuple[LanguageModel, Region]:
    lm = tiny_lm(dtype=dtype)
    return lm, locate(lm, prompt_set("harmful", REQUESTS, REFUSALS), "gradient").select(0.1)


def train(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Every process on rows of its own."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
        ids = torch.randint(0, model.config.vocab_size, (4, 48), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def in_a_loop(dtype: torch.dtype) -> LanguageModel:
    """Protected in a loop of one's own."""
    lm, region = world(dtype)
    lm = sharded(lm)
    safety, optimizer = SafetyPreserving(region), adamw(lm.model)
    safety.protect(lm.model, optimizer)
    train(lm.model, optimizer)
    safety.verify()
    return lm


def as_a_trainer_does(folder: Path) -> LanguageModel:
    """The callback's calls in the order in which a Trainer with FSDP makes them: spread after it was made."""
    lm, region = world(torch.float32)
    arguments, state, control = TrainingArguments(str(folder), use_cpu=True), TrainerState(), TrainerControl()
    safety = SafetyPreserving(region)
    safety.on_init_end(arguments, state, control, model=lm.model)
    lm = sharded(lm)
    optimizer = adamw(lm.model)
    safety.on_train_begin(arguments, state, control, model=lm.model, optimizer=optimizer)
    train(lm.model, optimizer)
    safety.on_optimizer_step(arguments, state, control, optimizer=optimizer)
    safety.on_train_end(arguments, state, control)
    return lm


def notices_a_change() -> bool:
    """Whether the process that holds a protected weight sees that it changed."""
    lm, region = world(torch.float32)
    lm = sharded(lm)
    safety = SafetyPreserving(region)
    safety.protect(lm.model, adamw(lm.model))
    for parameter in lm.model.parameters():
        own_part(parameter).add_(1.0)
    try:
        safety.verify()
    except ProtectionError:
        return True
    return False


def trained(*, after_locating: bool) -> LanguageModel:
    """Trained as anyone would, before or after gradients were exchanged to locate."""
    lm = sharded(tiny_lm())
    if after_locating:
        locate(lm, prompt_set("harmful", REQUESTS, REFUSALS), "gradient")
    lm.model.requires_grad_(True)
    train(lm.model, adamw(lm.model))
    return lm


def hardened(folder: Path, dtype: torch.dtype) -> None:
    """One process writes the folder, each the patch that it was given; the weights are the original ones again."""
    JUDGES["opening"] = lambda: OpeningJudge("N")
    region = region_of(dtype)
    lm = sharded(tiny_lm(dtype=dtype))
    before = lm.fingerprints()
    patch = run(lm, folder, region, max_over_refusal_rise=1.0)
    assert lm.fingerprints() == before
    patch.save(folder.with_suffix(f".{dist.get_rank()}.safetensors"))
    if dist.get_rank() == 0:
        with suppress(UsageError):
            run(lm, folder, region)
            raise AssertionError("A folder that holds a run was taken.")
    dist.barrier()


def save(lm: LanguageModel, path: Path) -> None:
    gathered = {name: whole(value.detach()).contiguous() for name, value in lm.model.named_parameters()}
    if dist.get_rank() == 0:
        save_file(gathered, path)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, dtype in DTYPES.items():
        save(in_a_loop(dtype), folder / f"loop-{name}.safetensors")
    save(as_a_trainer_does(folder), folder / "trainer.safetensors")
    for name, dtype in DTYPES.items():
        hardened(folder / f"harden-{name}", dtype)
    save(trained(after_locating=False), folder / "fresh.safetensors")
    save(trained(after_locating=True), folder / "located.safetensors")
    assert notices_a_change()
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # see docs/sharded.md


if __name__ == "__main__":
    main(Path(sys.argv[1]))
