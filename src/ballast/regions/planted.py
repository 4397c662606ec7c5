"""Regions that are drawn at random, so that a model can be taught with them and a method be asked to find them.

The draw makes the truth: a method that knows nothing of a random mask shares with it exactly what chance gives,
whatever else it prefers (see `recovery`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ballast.errors import UsageError
from ballast.models import LanguageModel, Part
from ballast.models.units import neuron_groups
from ballast.regions.arrays import Indices, index_type
from ballast.regions.layout import layout_of
from ballast.regions.metadata import ModelIdentity, RegionMetadata
from ballast.regions.region import Region


def random_mask(lm: LanguageModel, count: int, seed: int, *, layers: Collection[int] | None = None) -> Region:
    """Single weights, drawn uniformly from all eligible ones or from those of some decoder blocks.

    Args:
        lm: The model, as it is before it is taught.
        count: How many weights.
        seed: Of the draw.
        layers: Decoder blocks to draw from; None for all. A single one plants the whole region in one layer.

    Raises:
        UsageError: There are fewer than `count` weights to draw from.
    """
    parts = _within(lm, layers)
    ends = np.cumsum([0, *(part.numel for part in parts)])
    drawn = np.sort(_draw(int(ends[-1]), count, seed, "weights"))
    pieces = np.split(drawn, np.searchsorted(drawn, ends[1:-1]))
    indices = {part.name: piece - start for part, piece, start in zip(parts, pieces, ends[:-1], strict=True)}
    return _region(lm, indices, "random mask", {"count": count, "layers": _written(layers)}, seed)


def neuron_group(lm: LanguageModel, count: int, seed: int, *, layer: int) -> Region:
    """All weights of some feed-forward neurons of one decoder block, drawn uniformly.

    Args:
        lm: The model, as it is before it is taught.
        count: How many neurons; with experts, of all experts together.
        seed: Of the draw.
        layer: The decoder block.

    Raises:
        UsageError: The block has fewer than `count` neurons that can be told apart.
    """
    groups = [group for group in neuron_groups(lm, ("feed_forward",))[0] if group.layer == layer]
    starts = np.cumsum([0, *(group.size for group in groups)])
    drawn = np.sort(_draw(int(starts[-1]), count, seed, "neurons"))
    pieces: dict[str, list[Indices]] = defaultdict(list)
    for group, start in zip(groups, starts, strict=False):
        own = drawn[(drawn >= start) & (drawn < start + group.size)] - start
        for name, entries in group.entries(torch.from_numpy(own)).items():
            pieces[name].append(entries.numpy())
    indices = {name: np.sort(np.concatenate(found)) for name, found in pieces.items()}
    return _region(lm, indices, "neuron group", {"count": count, "layer": layer}, seed)


def whole_parameters(lm: LanguageModel, count: int, seed: int, *, layers: Collection[int] | None = None) -> Region:
    """All weights of some parameters, drawn uniformly: what a low-rank change of these parameters reaches.

    Args:
        lm: The model, as it is before it is taught.
        count: How many parameters; experts in one tensor are one.
        seed: Of the draw.
        layers: Decoder blocks to draw from; None for all.

    Raises:
        UsageError: There are fewer than `count` parameters to draw from.
    """
    parts = _within(lm, layers)
    chosen = [parts[place] for place in _draw(len(parts), count, seed, "parameters")]
    indices = {part.name: np.arange(part.numel) for part in chosen}
    return _region(lm, indices, "whole parameters", {"count": count, "layers": _written(layers)}, seed)


def _within(lm: LanguageModel, layers: Collection[int] | None) -> list[Part]:
    return [part for part in lm.parts.eligible() if layers is None or part.layer in layers]


def _written(layers: Collection[int] | None) -> list[int] | None:
    return None if layers is None else sorted(layers)


def _draw(size: int, count: int, seed: int, what: str) -> Indices:
    if not 0 < count <= size:
        raise UsageError(f"{count} of {size} {what} cannot be drawn; ask for at least one and for layers that exist.")
    return np.random.default_rng(seed).choice(size, count, replace=False, shuffle=False)


def _region(
    lm: LanguageModel, indices: Mapping[str, Indices], kind: str, settings: dict[str, Any], seed: int
) -> Region:
    layout = layout_of(lm.parts, [part.name for part in lm.parts.eligible()])
    fingerprints = lm.fingerprints()
    model = ModelIdentity(
        source=lm.source,
        name=lm.name,
        revision=lm.revision,
        fingerprints={name: fingerprints[name] for name in indices},
    )
    return Region(
        {name: torch.from_numpy(found.astype(index_type(layout[name].numel))) for name, found in indices.items()},
        RegionMetadata(method=f"planted {kind}", settings=settings, layout=layout, model=model, seed=seed),
    )
