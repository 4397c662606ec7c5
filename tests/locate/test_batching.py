"""What is found does not hang on how many rows share a pass, or on which side they are padded."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ballast.locate import engine, inputs, locate, neurons
from ballast.models import LanguageModel
from ballast.prompts.batches import collate
from ballast.regions import Region
from tests.worlds import REFUSALS, REQUESTS, prompt_set, tiny_lm

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", REQUESTS, REFUSALS)
METHODS = ("esi", "snip", "wanda", "gradient", "gradient_times_weight", "refusal_direction", "neurons", "ships")


def region(lm: LanguageModel, method: str, batch_size: int) -> Region:
    return locate(lm, PROMPTS, method, batch_size=batch_size).select(0.25)


def agreement(one: Region, other: Region) -> float:
    return len(one & other) / max(len(one), len(other))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_moe", "gpt_oss"])
def test_batch_size(name: str, method: str) -> None:
    lm = tiny_lm(name)
    alone = region(lm, method, 1)
    for size in (2, 3, 4):
        assert agreement(alone, region(lm, method, size)) >= 0.999


@pytest.mark.parametrize("method", ["esi", "snip", "wanda", "gradient_times_weight", "neurons"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_moe", "gpt_oss"])
def test_padding_side(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm(name)
    right = region(lm, method, 4)
    for room in (engine, inputs, neurons):
        monkeypatch.setattr(room, "collate", partial(collate, side="left"))
    assert agreement(right, region(lm, method, 4)) >= 0.999
