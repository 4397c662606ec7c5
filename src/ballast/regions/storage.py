"""The Region file: one safetensors file, readable without Ballast.

Per parameter with selected entries there is either `bits:<parameter>` (uint8, one bit per entry in flat C order, least
significant bit first, zero-padded to a multiple of 8 bytes; used when more than 1 in 32 entries is selected) or
`idx:<parameter>` (ascending unique flat indices, int32, int64 for parameters of 2**31 entries and more). The metadata
key `ballast` holds one JSON object, see `RegionMetadata`, with the id of the region added as `region_id`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ballast.errors import RegionError
from ballast.regions.bits import WORD, packed_words, unpacked_indices
from ballast.regions.formed import Formed
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
            tensors[f"bits:{name}"] = torch.from_numpy(packed_words(places.numpy(), numel).view(np.uint8))
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
    indices, metadata, region_id = open_region(path)
    return dict(indices), metadata, region_id


def open_region(path: Path) -> tuple[Formed, RegionMetadata, str]:
    """The same with indices that are read from the file whenever they are asked for.

    Raises:
        RegionError: As for `read_region`; of damaged indices when they are asked for.
    """
    if not path.is_file():
        raise RegionError(f"{path} is not a file; give a region file that locate wrote.")
    try:
        file: Any = safe_open(path, framework="pt")
        text = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise RegionError(f"{path} cannot be read as a region ({error}); locate it again.") from error
    if text is None:
        raise RegionError(f"{path} is a safetensors file but no region; give a file that locate wrote.")
    metadata, region_id = _parsed(path, text)
    try:
        keys = _keys(file.keys(), metadata)
    except RegionError as error:
        raise RegionError(f"{path} is damaged: {error}") from error

    def read(name: str) -> torch.Tensor:
        try:
            return _indices(keys[name], file.get_tensor(keys[name]), metadata.layout[name].numel)
        except RegionError as error:
            raise RegionError(f"{path} is damaged: {error}") from error
        except (SafetensorError, OSError) as error:
            raise RegionError(f"{path} cannot be read as a region ({error}); locate it again.") from error

    return Formed(keys, read), metadata, region_id


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


def _keys(keys: Iterable[str], metadata: RegionMetadata) -> dict[str, str]:
    """The key of each parameter's tensor, in code-point order of the parameters."""
    found: dict[str, str] = {}
    for key in keys:
        form, _, name = key.partition(":")
        if form not in ("bits", "idx") or name not in metadata.layout or name in found:
            raise RegionError(f"the tensor {key!r} does not belong there; locate the region again.")
        found[name] = key
    return {name: found[name] for name in sorted(found)}


def _indices(key: str, stored: torch.Tensor, numel: int) -> torch.Tensor:
    """Flat indices of one parameter from either form."""
    indices = stored if key.startswith("idx:") else _unpacked(key, stored, numel)
    if not indices.numel():
        raise RegionError(f"the tensor {key!r} selects nothing; locate the region again.")
    return indices


def _unpacked(key: str, bits: torch.Tensor, numel: int) -> torch.Tensor:
    """Ascending flat indices of the bits that are set."""
    expected = -(-numel // WORD) * PADDING
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (expected,):
        raise RegionError(f"the tensor {key!r} is not {expected} bytes; locate the region again.")
    return torch.from_numpy(unpacked_indices(bits.numpy().view("<u8")))
