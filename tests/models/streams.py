"""A tiny model in several files, opened both ways."""

from __future__ import annotations

from pathlib import Path

import torch

from ballast.models import LanguageModel, open_model
from tests.zoo import tiny, tiny_tokenizer


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint in at least two files."""
    tiny(name, dtype=dtype).save_pretrained(folder, max_shard_size="30KB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def both(name: str, folder: Path) -> tuple[LanguageModel, LanguageModel]:
    """The same checkpoint in memory and streamed, on the CPU."""
    checkpoint = saved(name, folder / name)
    return open_model(checkpoint, device="cpu"), open_model(checkpoint, device="cpu", stream=True)
