"""Patch files: safetensors with `<tensor>.indices`, `.values` and `.previous`, and a JSON header under `ballast`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ballast.errors import PatchError
from ballast.patches.entries import Entries, check_entries
from ballast.patches.header import Header
from ballast.runs import write_tensors

METADATA_KEY = "ballast"


def write(path: Path, header: Header, entries: Mapping[str, Entries]) -> None:
    """Write a patch file atomically.

    Raises:
        RunError: The file cannot be written.
    """
    tensors = {f"{name}.{field}": tensor for name, part in entries.items() for field, tensor in part._asdict().items()}
    write_tensors(path, tensors, {METADATA_KEY: header.model_dump_json()})


def read(path: Path) -> tuple[Header, dict[str, Entries]]:
    """Read a patch file and check all of it.

    Raises:
        PatchError: The file is missing, damaged, or not a patch.
    """
    if not path.is_file():
        raise PatchError(f"{path} is not a file; give the patch.safetensors that harden or edit wrote.")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors: dict[str, torch.Tensor] = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise PatchError(f"{path} is damaged ({error}); copy or make the patch again.") from error
    if METADATA_KEY not in metadata:
        raise PatchError(f"{path} is a safetensors file but not a patch; give the patch.safetensors of harden or edit.")
    try:
        header = Header.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "header"
        raise PatchError(f"{path} has a damaged header ({field}: {first['msg']}); make the patch again.") from error
    return header, _entries(path, header, tensors)


def _entries(path: Path, header: Header, tensors: Mapping[str, torch.Tensor]) -> dict[str, Entries]:
    """The entries that the header announces: all of them, no others, each valid."""
    expected = {f"{name}.{field}" for name in header.tensors for field in Entries._fields}
    odd = sorted(expected ^ tensors.keys())
    if odd or not expected:
        named = odd[0] if odd else "no tensor"
        raise PatchError(f"The header and the content of {path} do not fit ({named}); make the patch again.")
    entries = {}
    for name, record in header.tensors.items():
        dtype = record.torch_dtype
        if dtype is None:
            raise PatchError(f"{path} gives {name} the unknown dtype {record.dtype}; make the patch again.")
        entries[name] = Entries(*(tensors[f"{name}.{field}"] for field in Entries._fields))
        check_entries(name, entries[name], record.shape, dtype)
    return entries
