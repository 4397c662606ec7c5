"""The Region file: one safetensors file, readable without Ballast.

Per parameter with selected entries there is either `bits:<parameter>` (uint8, one bit per entry in flat C order, least
significant bit first, zero-padded to a multiple of 8 bytes; used when more than 1 in 32 entries is selected) or
`idx:<parameter>` (ascending unique flat indices, int32, int64 for parameters of 2**31 entries and more). The metadata
key `ballast` holds one JSON object, see `RegionMetadata`, with the id of the region added as `region_id`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ballast.errors import RegionError
from ballast.regions.metadata import SCHEMA_VERSION, RegionMetadata, canonical_json
from ballast.runs import write_tensors

SPARSEST_BITS = 32  # a bit per entry costs less than 32 bits per selected entry above a density of 1/32
PADDING = 8  # bytes
KEY = "ballast"


def write_region(path: Path, indices: Mapping[str, torch.Tensor], metadata: RegionMetadata, region_id: str) -> None:
    """Write a Region file atomically; equal regions give equal bytes.

    Raises:
        RunError: The file cannot be written.
    """
    tensors = {}
    for name, places in indices.items():
        numel = metadata.layout[name].numel
        if len(places) * SPARSEST_BITS > numel:
            tensors[f"bits:{name}"] = _packed(places, numel)
        else:
            tensors[f"idx:{name}"] = places
    record = {"region_id": region_id, **metadata.model_dump(mode="json")}
    write_tensors(path, tensors, {KEY: canonical_json(record)})


def read_region(path: Path) -> tuple[dict[str, torch.Tensor], RegionMetadata, str]:
    """Read a Region file: indices per parameter, metadata, and the id it claims.

    The structure of the file is checked here; `Region` checks the indices and the id.

    Raises:
        RegionError: The file is missing, damaged, or not a Region file that this version can read.
    """
    if not path.is_file():
        raise RegionError(f"{path} is not a file; give a region file that locate wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RegionError(f"{path} cannot be read as a region ({error}); locate it again.") from error
    if text is None:
        raise RegionError(f"{path} is a safetensors file but no region; give a file that locate wrote.")
    metadata, region_id = _parsed(path, text)
    try:
        return _indices(tensors, metadata), metadata, region_id
    except RegionError as error:
        raise RegionError(f"{path} is damaged: {error}") from error


def _parsed(path: Path, text: str) -> tuple[RegionMetadata, str]:
    """The metadata of a file and the id it claims."""
    try:
        record = json.loads(text)
        found = record.get("schema_version") if isinstance(record, dict) else None
        if found != SCHEMA_VERSION:
            raise RegionError(
                f"{path} has region schema {found!r} but this version reads {SCHEMA_VERSION}; "
                "use the version of Ballast that wrote it, or locate it again."
            )
        region_id = str(record.pop("region_id", ""))
        return RegionMetadata.model_validate_json(json.dumps(record)), region_id
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        raise RegionError(f"{path} has damaged metadata ({place}: {first['msg']}); locate it again.") from error
    except (ValueError, RecursionError) as error:
        raise RegionError(f"{path} has metadata that is not JSON ({error}); locate it again.") from error


def _indices(tensors: dict[str, torch.Tensor], metadata: RegionMetadata) -> dict[str, torch.Tensor]:
    """Flat indices per parameter from either form."""
    indices: dict[str, torch.Tensor] = {}
    for key in sorted(tensors):
        form, _, name = key.partition(":")
        if form not in ("bits", "idx") or name not in metadata.layout or name in indices:
            raise RegionError(f"the tensor {key!r} does not belong there; locate the region again.")
        if form == "idx":
            indices[name] = tensors[key]
        else:
            indices[name] = _unpacked(key, tensors[key], metadata.layout[name].numel)
        if not indices[name].numel():
            raise RegionError(f"the tensor {key!r} selects nothing; locate the region again.")
    return indices


def _packed(indices: torch.Tensor, numel: int) -> torch.Tensor:
    """One bit per entry, (k,) integer to (ceil(numel / 64) * 8,) uint8."""
    mask = np.zeros(numel, np.bool_)
    mask[indices.numpy()] = True
    packed = np.packbits(mask, bitorder="little")
    return torch.from_numpy(np.pad(packed, (0, -packed.size % PADDING)))


def _unpacked(key: str, bits: torch.Tensor, numel: int) -> torch.Tensor:
    """Ascending flat indices of the bits that are set."""
    expected = -(-numel // (8 * PADDING)) * PADDING
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (expected,):
        raise RegionError(f"the tensor {key!r} is not {expected} bytes; locate the region again.")
    return torch.from_numpy(np.flatnonzero(np.unpackbits(bits.numpy(), bitorder="little")))
