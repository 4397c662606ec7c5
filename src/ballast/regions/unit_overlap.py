"""How much regions of neurons, heads or layers have in common, counted in units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ballast.regions.arrays import Counts
from ballast.regions.chance import Permutation, chance_iou, excess, permutation_test, size_cap
from ballast.regions.metadata import Granularity, RegionMetadata


class WindowOverlap(NamedTuple):
    """Two runs of consecutive layers compared.

    Attributes:
        first: First layer of the one, and the layer after its last.
        second: The same of the other.
        chance: Mean IoU over all placements of two windows of these lengths, exactly.
        p: Share of these placements with at least the observed IoU.
        start_difference: First layer of the second, less that of the first.
        end_difference: The same of their ends.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    chance: float
    p: float
    start_difference: int
    end_difference: int


class UnitOverlap(NamedTuple):
    """The neurons, heads or layers of two regions compared.

    Attributes:
        granularity: What a unit is.
        intersection: Units in both.
        union: Units in either.
        iou: intersection / union, in [0, 1].
        chance: Expected IoU of random regions with the same number of units of every kind.
        size_cap: The highest IoU that these numbers per kind allow.
        excess: As for weights.
        p: As for weights, within every kind.
        window: For regions of layers that are consecutive, the same for windows; else None.
    """

    granularity: Granularity
    intersection: int
    union: int
    iou: float
    chance: float
    size_cap: float
    excess: float | None
    p: Permutation
    window: WindowOverlap | None

    def as_json(self) -> dict[str, Any]:
        """Every number by its name."""
        window = self.window._asdict() if self.window else None
        return {**self._asdict(), **self.p._asdict(), "window": window}


def unit_overlap(
    one: RegionMetadata,
    other: RegionMetadata,
    *,
    draws: int,
    seed: Sequence[int],
    outside: RegionMetadata | None = None,
) -> UnitOverlap | None:
    """Compare two regions unit by unit, or None if they are not made of units of one granularity and number.

    Units of different regions can share weights, such as the key rows of heads that use them together, so this is not
    the overlap of their weights. Chance leaves out the units of a region `outside` of which both were found.
    """
    scored = one.scored_units
    if not scored or (one.granularity, scored) != (other.granularity, other.scored_units):
        return None
    pairs = [(set(one.selected_units.get(kind, ())), set(other.selected_units.get(kind, ()))) for kind in scored]
    first, second = (np.array([len(pair[side]) for pair in pairs], np.int64) for side in (0, 1))
    barred = outside.selected_units if outside and outside.scored_units == scored else {}
    sizes: Counts = np.array([count - len(barred.get(kind, ())) for kind, count in scored.items()], np.int64)
    intersection = sum(len(units & others) for units, others in pairs)
    union = int(first.sum() + second.sum()) - intersection
    mine, theirs = _window(one), _window(other)
    return UnitOverlap(
        granularity=one.granularity,
        intersection=intersection,
        union=union,
        iou=intersection / union,
        chance=chance_iou(first, second, sizes),
        size_cap=size_cap(first, second),
        excess=excess(intersection, first, second, sizes),
        p=permutation_test(intersection, first, second, sizes, draws=draws, seed=seed),
        window=window_overlap(mine, theirs, sum(scored.values())) if mine and theirs else None,
    )


def window_overlap(first: tuple[int, int], second: tuple[int, int], layers: int) -> WindowOverlap:
    """Compare two windows of layers with all placements of windows of their lengths.

    Args:
        first: [start, end) of the one.
        second: [start, end) of the other.
        layers: Layers there are.
    """
    lengths = [end - start for start, end in (first, second)]
    placed = [[(start, start + length) for start in range(layers - length + 1)] for length in lengths]
    ious = np.array([_window_iou(one, other) for one in placed[0] for other in placed[1]])
    observed = _window_iou(first, second)
    return WindowOverlap(
        first, second, float(ious.mean()), float((ious >= observed).mean()), second[0] - first[0], second[1] - first[1]
    )


def _window_iou(first: tuple[int, int], second: tuple[int, int]) -> float:
    shared = max(0, min(first[1], second[1]) - max(first[0], second[0]))
    return shared / (first[1] - first[0] + second[1] - second[0] - shared)


def _window(metadata: RegionMetadata) -> tuple[int, int] | None:
    """[start, end) of a region of consecutive layers, else None."""
    if metadata.granularity != "layer":
        return None
    layers = sorted({unit[0] for units in metadata.selected_units.values() for unit in units})
    consecutive = layers and layers[-1] - layers[0] + 1 == len(layers)
    return (layers[0], layers[-1] + 1) if consecutive else None
