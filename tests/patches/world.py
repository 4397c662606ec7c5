"""Tiny models and patches for the tests of this room."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ballast.patches import Origin, Patch
from tests.zoo import tiny

ORIGIN = Origin(source="owner/tiny", name="tiny")


def changed_copy(name: str, dtype: torch.dtype, share: float = 0.02, seed: int = 1) -> PreTrainedModel:
    """The tiny model with about a share of the entries of each parameter changed."""
    model = tiny(name, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            chosen = torch.rand(parameter.shape, generator=generator) < share
            parameter[chosen] = torch.randn(int(chosen.sum()), generator=generator).to(dtype)
    return model


def patch_of(name: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Patch:
    return Patch.between(
        tiny(name, dtype=dtype), changed_copy(name, dtype, **options), base=ORIGIN, settings={"lr": 0.1}
    )
