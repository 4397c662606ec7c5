"""Fine-tuning of a model that is spread over real processes of `torchrun`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun import torchrun
from tests.tune.sharded_process import world

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[2, 3])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes; and three, over which rows do not divide."""
    path = tmp_path_factory.mktemp("processes")
    torchrun(request.param, "-m", "tests.tune.sharded_process", path)
    return path


@pytest.mark.parametrize("name", ["loop-float32", "loop-bfloat16", "trainer"])
def test_the_region_keeps_its_bits_and_the_rest_is_trained(folder: Path, name: str) -> None:
    lm, region = world(torch.bfloat16 if "bfloat16" in name else torch.float32)
    after = load_file(folder / f"{name}.safetensors")
    changed = free = 0
    for key, before in lm.model.named_parameters():
        moved = (after[key] != before.detach()).flatten()
        if key in region.indices:
            inside = region.indices[key].long()
            assert not moved[inside].any()
            free -= len(inside)
        changed += int(moved.sum())
        free += before.numel()
    assert changed > 0.9 * free
