"""A LoRA adapter merged around a region."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ballast.errors import ModelError, RegionError
from ballast.locate import locate
from ballast.tune import merge_protected
from tests.locate.adapters import adapted, rewrite
from tests.tune.test_safety_preserving import bits, changed
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_everything_but_the_region_is_merged(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lm = tiny_lm(name, dtype=dtype)
    region = locate(lm, PROMPTS, "magnitude").select(0.1)
    merged = adapted(lm, tmp_path)
    before = bits(lm.model)
    kept = merge_protected(lm, tmp_path, region)
    assert changed(before, lm.model, region)[0] == 0
    expected = dict(merged.model.named_parameters())
    moved = 0
    for key, value in lm.model.named_parameters():
        mine, theirs = value.detach().flatten().float(), expected[key].detach().flatten().float()
        protected = torch.zeros(len(mine), dtype=torch.bool)
        if key in region.indices:
            protected[region.indices[key].long()] = True
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2  # PEFT adds in the dtype of the model
        torch.testing.assert_close(mine[~protected], theirs[~protected], rtol=tolerance, atol=tolerance)
        moved += int((mine[protected] != theirs[protected]).sum())
    assert 0 < kept <= len(region)
    if dtype == torch.float32:
        assert kept == moved


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    lm = tiny_lm()
    region = locate(lm, PROMPTS, "magnitude").select(0.1)
    adapted(lm, tmp_path)
    before = bits(lm.model)
    with pytest.raises(RegionError, match="holds other values"):
        merge_protected(tiny_lm(seed=1), tmp_path, region)
    rewrite(tmp_path, {"model.norm.weight": torch.ones(8)})
    with pytest.raises(ModelError, match=r"also changes model.norm.weight \(not a low-rank update\)"):
        merge_protected(lm, tmp_path, region)
    assert changed(before, lm.model, region) == (0, 0)
