"""Small layouts and regions for the tests of this room."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from ballast.regions import ModelIdentity, PromptSource, Region, RegionMetadata
from ballast.regions.layout import Orientation, layout_of


@dataclass(frozen=True)
class SmallPart:
    name: str
    layer: int | None
    role: str
    shape: tuple[int, ...]
    orientation: Orientation = "out_in"
    expert_dim: int | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


# names whose code-point order is not their order here: "10" < "2", "Z" < "a"
PARTS = (
    SmallPart("layers.2.query", 2, "query", (5, 7)),
    SmallPart("layers.2.down", 2, "down", (6, 4), "in_out"),
    SmallPart("layers.10.query", 10, "query", (3, 8)),
    SmallPart("layers.10.experts", 10, "experts.up", (3, 4, 5), "out_in", 0),
    SmallPart("layers.2.Zexperts", 2, "experts.down", (2, 6, 3), "in_out", 0),
    SmallPart("layers.2.last", 2, "experts.down", (4, 3, 2), "out_in", 2),
    SmallPart("lm_head", None, "lm_head", (4, 5)),
)


def header(path: Path) -> dict[str, object]:
    """The JSON header of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return cast("dict[str, object]", json.loads(data[8 : 8 + length]))


def fingerprint(name: str, salt: str = "") -> str:
    return hashlib.sha256((salt + name).encode()).hexdigest()


def region(
    selected: Mapping[str, Sequence[int] | set[int]], parts: Sequence[SmallPart] = PARTS, salt: str = "", seed: int = 0
) -> Region:
    metadata = RegionMetadata(
        method="toy",
        settings={"rate": 0.1},
        layout=layout_of(parts, [part.name for part in parts]),
        model=ModelIdentity(
            source="a/toy", name="toy", fingerprints={part.name: fingerprint(part.name, salt) for part in parts}
        ),
        prompts=PromptSource(name="builtin/harmful/tune", hash=fingerprint("prompts"), n=3),
        seed=seed,
    )
    return Region({name: torch.tensor(sorted(places)) for name, places in selected.items()}, metadata)


def places(found: Region) -> set[tuple[str, int]]:
    return {(name, place) for name, indices in found.indices.items() for place in indices.tolist()}
