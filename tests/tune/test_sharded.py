"""Fine-tuning of a model that is spread over real processes of `torchrun`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun import torchrun
from tests.tune.sharded_process import DTYPES, world
from tests.tune.world import region_of, rows_of, run
from tests.worlds import same_bits, tiny_lm

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[2, 3])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes; and three, over which rows do not divide."""
    path = tmp_path_factory.mktemp("processes")
    torchrun(request.param, "-m", "tests.tune.sharded_process", path)
    return path


def test_training_after_locating_averages_gradients_again(folder: Path) -> None:
    fresh, located = (load_file(folder / f"{name}.safetensors") for name in ("fresh", "located"))
    assert same_bits(located, fresh)


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize("name", DTYPES)
def test_hardening_gives_the_patch_of_one_process(folder: Path, name: str, tmp_path: Path) -> None:
    dtype = DTYPES[name]
    patch = run(tiny_lm(dtype=dtype), tmp_path / "harden", region_of(dtype), max_over_refusal_rise=1.0)
    patch.save(tmp_path / "one")
    expected = (tmp_path / "one").read_bytes()
    written = list(folder.glob(f"harden-{name}.*.safetensors"))
    assert len(written) > 1
    assert all(path.read_bytes() == expected for path in [*written, folder / f"harden-{name}" / "patch.safetensors"])
    assert (folder / f"harden-{name}" / "harden.json").exists()
    mine, theirs = (rows_of(path) for path in (tmp_path / "harden", folder / f"harden-{name}"))
    assert [row.get("select") for row in theirs] == [row.get("select") for row in mine]
    for one, other in zip(mine, theirs, strict=True):
        assert one.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-6)


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
