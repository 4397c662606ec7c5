"""How much regions have in common, beside what chance alone would give."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import hypergeom

from ballast.errors import RegionError, UsageError
from ballast.regions.arrays import Counts
from ballast.regions.metadata import Granularity
from ballast.regions.region import Region

SMALL = 200  # below this size the mean of a ratio is not the ratio of the means


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
    """

    granularity: Granularity
    intersection: int
    union: int
    iou: float
    chance: float
    size_cap: float
    excess: float | None


class PairOverlap(NamedTuple):
    """Two regions compared.

    Attributes:
        first: Position of the one region in the list.
        second: Position of the other.
        intersection: Weights in both.
        union: Weights in either.
        iou: intersection / union, in [0, 1].
        chance: Expected IoU of random regions with the same number of weights in every weight matrix.
        size_cap: The highest IoU that these numbers per weight matrix allow.
        excess: (intersection - its mean) / its standard deviation under the same chance; None if it cannot vary.
        units: The same per unit, if both regions are made of units of one granularity, out of the same numbers.
    """

    first: int
    second: int
    intersection: int
    union: int
    iou: float
    chance: float
    size_cap: float
    excess: float | None
    units: UnitOverlap | None = None

    def as_json(self) -> dict[str, Any]:
        """Every number by its name."""
        return {**self._asdict(), "units": self.units._asdict() if self.units else None}


def overlap(regions: Sequence[Region]) -> list[PairOverlap]:
    """Compare every pair of regions.

    Args:
        regions: At least two, of one layout.

    Raises:
        UsageError: Fewer than two regions.
        RegionError: Regions of different layouts, or intersections over different numbers of prompts.
    """
    if len(regions) < 2:
        raise UsageError("An overlap needs at least two regions; give another one.")
    _check_intersections(regions)
    counts = [flat_counts(region) for region in regions]
    sizes = matrix_sizes(regions[0])
    rows = []
    for first, second in itertools.combinations(range(len(regions)), 2):
        intersection = regions[first].intersection_size(regions[second])
        numbers = _numbers(intersection, counts[first], counts[second], sizes)
        rows.append(PairOverlap(first, second, *numbers, unit_overlap(regions[first], regions[second])))
    return rows


def unit_overlap(first: Region, second: Region) -> UnitOverlap | None:
    """Compare two regions unit by unit, or None if they are not made of units of one granularity and number.

    Units of different regions can share weights, such as the key rows of heads that use them together, so this is not
    the overlap of their weights.
    """
    one, other = first.metadata, second.metadata
    scored = one.scored_units
    if not scored or (one.granularity, scored) != (other.granularity, other.scored_units):
        return None
    pairs = [(set(one.selected_units.get(kind, ())), set(other.selected_units.get(kind, ()))) for kind in scored]
    counts = [np.array([len(pair[side]) for pair in pairs], np.int64) for side in (0, 1)]
    intersection = sum(len(mine & theirs) for mine, theirs in pairs)
    sizes = np.array(list(scored.values()), np.int64)
    return UnitOverlap(one.granularity, *_numbers(intersection, counts[0], counts[1], sizes))


def _numbers(
    intersection: int, first: Counts, second: Counts, sizes: Counts
) -> tuple[int, int, float, float, float, float | None]:
    """Intersection, union, IoU, chance, cap and excess, from the numbers per stratum."""
    union = int(first.sum() + second.sum()) - intersection
    mean, variance = intersection_moments(first, second, sizes)
    return (
        intersection,
        union,
        intersection / union,
        chance_iou(first, second, sizes),
        float(np.minimum(first, second).sum() / np.maximum(first, second).sum()),
        (intersection - mean) / math.sqrt(variance) if variance > 0 else None,
    )


def _check_intersections(regions: Sequence[Region]) -> None:
    """An intersection over prompts shrinks with every prompt, so its size says nothing beside one of fewer prompts."""
    numbers = {
        region.metadata.prompts.n
        for region in regions
        if region.metadata.settings.get("selection") == "intersection" and region.metadata.prompts is not None
    }
    if len(numbers) > 1:
        raise RegionError(
            f"The regions are intersections over {min(numbers)} and {max(numbers)} prompts, and every prompt makes an "
            "intersection smaller; locate them with the same number of prompts."
        )


def chance_iou(first: Counts, second: Counts, sizes: Counts) -> float:
    """Expected IoU of two random regions with given numbers of weights per stratum.

    From 200 weights on this is the ratio of expectations, EI / (|A| + |B| - EI) with EI = sum a_s b_s / N_s, whose
    error is of the order of 1 / union; below, it is the exact mean over all draws.

    Args:
        first: Weights of the one region per stratum, (strata,).
        second: Weights of the other, (strata,).
        sizes: Weights there are, (strata,).

    Raises:
        RegionError: Both regions are empty.
    """
    total = int(first.sum() + second.sum())
    if total == 0:
        raise RegionError("The overlap of two empty regions is undefined; compare regions that hold weights.")
    if max(first.sum(), second.sum()) >= SMALL:
        mean, _ = intersection_moments(first, second, sizes)
        return mean / (total - mean)
    probabilities = np.ones(1)  # of an intersection of 0, 1, 2, ... weights over the strata so far
    for a, b, size in zip(first.tolist(), second.tolist(), sizes.tolist(), strict=True):
        if a and b:
            stratum = hypergeom.pmf(np.arange(min(a, b) + 1), size, a, b)
            probabilities = np.convolve(probabilities, stratum)
    shared = np.arange(len(probabilities))
    return float((probabilities * shared / (total - shared)).sum())


def intersection_moments(first: Counts, second: Counts, sizes: Counts) -> tuple[float, float]:
    """Mean and variance of the number of shared weights under stratified chance (hypergeometric in every stratum)."""
    a, b, n = (counts.astype(np.float64) for counts in (first, second, sizes))
    variance = a * b * (n - a) * (n - b) / (n * n * np.maximum(n - 1, 1))
    return float((a * b / n).sum()), float(variance.sum())


def flat_counts(region: Region) -> Counts:
    """Selected weights per weight matrix, in code-point order of the parameters, (matrices,)."""
    return np.concatenate([counts for _, counts in sorted(region.matrix_counts().items())])


def matrix_sizes(region: Region) -> Counts:
    """Weights there are per weight matrix of the layout, in the same order, (matrices,)."""
    return np.array(
        [
            tensor.numel // tensor.matrices
            for _, tensor in sorted(region.layout.items())
            for _ in range(tensor.matrices)
        ],
        np.int64,
    )
