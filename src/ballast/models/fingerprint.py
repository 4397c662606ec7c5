"""Fingerprints: SHA-256 of each weight tensor, so that a region or a patch knows the model it was made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ballast.models.cache import cache_folder
from ballast.models.streaming import require_in_memory
from ballast.runs import read_json, write_json
from ballast.shards import whole


def tensor_fingerprint(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and raw bytes of a tensor, as 64 hexadecimal digits.

    Args:
        tensor: Any shape and dtype, on any device; read in row-major order, whole.

    Raises:
        ModelError: It is the empty place of a streamed weight.
    """
    require_in_memory([tensor])
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    plain = whole(tensor.detach()).cpu().contiguous()
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprints(model: PreTrainedModel, stored: Mapping[str, torch.Tensor] | None = None) -> dict[str, str]:
    """The fingerprint of every parameter as it is now; tied parameters appear once.

    Args:
        model: The model.
        stored: What is read from files instead of from memory, by parameter name; one at a time.
    """
    files = stored or {}
    return {name: tensor_fingerprint(files.get(name, parameter)) for name, parameter in model.named_parameters()}


def combined(parts: Mapping[str, str]) -> str:
    """One SHA-256 for a whole model, from the fingerprints of its parameters."""
    return hashlib.sha256(json.dumps(sorted(parts.items())).encode()).hexdigest()


def cached_fingerprints(
    model: PreTrainedModel, files: Sequence[Path], stored: Mapping[str, torch.Tensor] | None = None
) -> dict[str, str]:
    """Fingerprints of a model that was just opened from `files`, remembered by path, size and time stamp.

    Args:
        model: The model, unchanged since it was opened.
        files: The checkpoint's weight files; without any, nothing is remembered.
        stored: As for `fingerprints`.
    """
    if not files:
        return fingerprints(model, stored)
    stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    key = hashlib.sha256(json.dumps([stamps, str(model.dtype)]).encode()).hexdigest()
    remembered = cache_folder() / "fingerprints" / f"{key}.json"
    if remembered.exists():
        found: dict[str, str] = read_json(remembered)
        return found
    computed = fingerprints(model, stored)
    write_json(remembered, computed)
    return computed


def seed_of(seed: int, *names: str) -> int:
    """A seed for one of many generators, made from the run's seed and the names of what it is for."""
    return int.from_bytes(hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()[:7])
