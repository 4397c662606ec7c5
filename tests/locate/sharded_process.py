"""What each process of `torchrun` does for `test_sharded.py`: `... -m tests.locate.sharded_process FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ballast.errors import BallastError
from ballast.locate import Scores, WeightScores, locate, locate_all
from ballast.models import LanguageModel, sharded
from ballast.regions import Region, select_top
from ballast.regions.selection import Scope
from ballast.regions.threshold import Direction
from ballast.shards import own_part, whole
from tests.regions.worlds import PARTS
from tests.worlds import REFUSALS, REQUESTS, prompt_set, tiny_lm

# Weights as they are usually stored, the other way round, and experts the other way round in 3-D parameters.
CASES = (
    ("llama", "esi"),
    ("llama", "snip"),
    ("llama", "sigma"),
    ("gpt2", "gradient_times_weight"),
    ("gpt_oss", "esi"),
    ("gpt_oss", "snip"),
)
SCOPES: tuple[Scope, ...] = ("global", "per_layer", "per_tensor", "per_row")
DIRECTIONS: tuple[Direction, ...] = ("top", "bottom")


def scored(lm: LanguageModel, method: str) -> WeightScores:
    scores = locate(lm, prompt_set("asked", REQUESTS, REFUSALS), method, batch_size=1)
    assert isinstance(scores, WeightScores)
    return scores


def regions_of(scores: Scores) -> Iterator[tuple[str, Region]]:
    for scope in SCOPES:
        yield scope, scores.select("0.05", scope=scope)
    best = scores.select("0.05")
    yield "next_best", scores.select("0.05", outside=best)
    yield "lowest_of_a_layer", scores.select("0.01", direction="bottom", layers=[1])


def tied_scores(seed: int) -> dict[str, torch.Tensor]:
    """Whole numbers from 0 to 3, so that every cut runs through ties."""
    generator = torch.Generator().manual_seed(seed)
    return {part.name: torch.randint(0, 4, part.shape, generator=generator).float() for part in PARTS}


def selections(spread: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    """Selections among tied scores, ready for JSON; `spread` puts a tensor where it shall be."""
    found = []
    for seed in range(3):
        scores = {name: spread(values) for name, values in tied_scores(seed).items()}
        for scope in SCOPES:
            for direction in DIRECTIONS:
                chosen = select_top(scores, "0.3", scope=scope, parts=PARTS, direction=direction)
                indices = {name: values.tolist() for name, values in chosen.indices.items()}
                found.append([indices, chosen.record.model_dump(mode="json")])
    return found


def without_feed_forward() -> LanguageModel:
    """A model that does not use the feed-forward part of its last block."""
    lm = tiny_lm()
    lm.model.model.layers[-1].mlp.forward = lambda states: states
    return sharded(lm)


def refusals(lm: LanguageModel, folder: Path) -> list[str]:
    prompts = prompt_set("asked", REQUESTS, REFUSALS)
    attempts: list[Callable[[], Any]] = [
        lambda: locate(lm, prompts, "wanda"),
        lambda: locate(lm, prompts, "esi", estimator="policy_gradient"),
        lambda: locate(lm, prompts, "esi", checkpoint=folder / "state"),
        lambda: locate_all(lm, prompts, ["esi"]),
        lambda: sharded(lm),
        lambda: locate(without_feed_forward(), prompts, "gradient"),
    ]
    said = []
    for attempt in attempts:
        try:
            attempt()
        except BallastError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    noted: dict[str, Any] = {"held": {}, "cells": {}}
    for name, method in CASES:
        lm = sharded(tiny_lm(name))
        before = lm.fingerprints()
        scores = scored(lm, method)
        for label, region in regions_of(scores):
            region.save(folder / f"{name}-{method}-{label}-{rank}.safetensors")
        noted["held"][f"{name}-{method}"] = {key: own_part(value).numel() for key, value in scores.values.items()}
        noted["cells"][f"{name}-{method}"] = scores.cells()
        gathered = {key: whole(value).contiguous() for key, value in scores.values.items()}
        save_file(gathered, folder / f"{name}-{method}-scores-{rank}.safetensors")
        assert lm.fingerprints() == before
    noted["refused"] = refusals(lm, folder)
    mesh = init_device_mesh("cpu", (processes,))
    noted["tied"] = selections(lambda values: distribute_tensor(values, mesh, [Shard(0)]))
    (folder / f"noted-{rank}.json").write_text(json.dumps(noted))
    dist.destroy_process_group()
    os._exit(0)  # see docs/sharded.md


if __name__ == "__main__":
    main(Path(sys.argv[1]))
