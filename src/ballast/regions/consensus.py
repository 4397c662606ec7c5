"""Weights that at least k of n regions agree on, and how much of that would agree with other regions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ballast.errors import RegionError, UsageError
from ballast.regions.arrays import Counts, Indices, index_type
from ballast.regions.counting import Selected
from ballast.regions.metadata import ModelIdentity, RegionMetadata, merged_fingerprints
from ballast.regions.region import Region, id_of


class Agreement(NamedTuple):
    """Weights in at least k of n regions.

    Attributes:
        at_least: k.
        weights: How many.
        chance: How many are expected of random regions with the same numbers in every weight matrix.
        stability: Mean IoU of the consensus of two disjoint halves of the regions, each in the same share of its half;
            None with fewer than four regions, or where a half agrees on nothing.
    """

    at_least: int
    weights: int
    chance: float
    stability: float | None


def consensus(regions: Sequence[Selected], at_least: int) -> Region:
    """The weights in at least so many of the regions.

    Args:
        regions: At least one, of one layout and the same weights.
        at_least: Between 1 and the number of regions.

    Raises:
        UsageError: `at_least` is outside of that.
        RegionError: No weight is in so many, or the regions do not belong together.
    """
    if not 1 <= at_least <= len(regions):
        raise UsageError(f"At least {at_least} of {len(regions)} regions is impossible; ask for 1 to {len(regions)}.")
    first = regions[0].metadata
    model = first.model
    for other in (region.metadata for region in regions[1:]):
        if other.layout_hash != first.layout_hash:
            raise RegionError(f"The regions select from different parameters ({first.model.name}, {other.model.name}).")
        model = ModelIdentity(**{**dict(model), "fingerprints": merged_fingerprints(model, other.model)})
    indices = {}
    for name, tensor in sorted(first.layout.items()):
        values, counts = _memberships(regions, name)
        kept = values[counts >= at_least]
        if len(kept):
            indices[name] = torch.from_numpy(kept.astype(index_type(tensor.numel)))
    if not indices:
        raise RegionError(f"No weight is in at least {at_least} of the {len(regions)} regions; ask for fewer.")
    metadata = RegionMetadata(
        method="consensus",
        settings={"at_least": at_least, "of": len(regions)},
        layout=first.layout,
        model=model,
        coverage=first.coverage,
        parents=tuple(id_of(region.indices, region.metadata) for region in regions),
    )
    return Region(indices, metadata)


def agreement(
    regions: Sequence[Selected], selected: Counts, sizes: Counts, *, splits: int = 10, seed: int = 0
) -> list[Agreement]:
    """The size of the consensus for every k, beside chance, and its stability.

    Args:
        regions: At least two, of one layout and the same weights.
        selected: Weights per region and weight matrix, (regions, matrices); see `count_shared`.
        sizes: Weights there are, (matrices,).
        splits: Random divisions of the regions into two halves.
        seed: Of these.
    """
    n = len(regions)
    exactly: Counts = np.zeros(n + 1, np.int64)
    for name in sorted(regions[0].metadata.layout):
        exactly += np.bincount(_memberships(regions, name)[1], minlength=n + 1)
    expected = expected_memberships(selected, sizes)
    return [
        Agreement(k, int(exactly[k:].sum()), float(expected[k:].sum()), _stability(regions, k, splits, seed))
        for k in range(1, n + 1)
    ]


def expected_memberships(selected: Counts, sizes: Counts) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Weights expected in exactly 0, 1, ... n random regions, (n + 1,); exact.

    Args:
        selected: Weights per region and stratum, (regions, strata).
        sizes: Weights there are, (strata,).
    """
    probabilities = np.zeros((len(selected) + 1, len(sizes)))  # that a weight is in k of the regions so far
    probabilities[0] = 1
    for densities in selected / sizes:
        probabilities[1:] = probabilities[1:] * (1 - densities) + probabilities[:-1] * densities
        probabilities[0] *= 1 - densities
    return probabilities @ sizes.astype(np.float64)


def _memberships(regions: Sequence[Selected], name: str) -> tuple[Indices, Counts]:
    """Entries of a parameter that are in any region, ascending, and in how many each is."""
    found = [region.indices[name].numpy() for region in regions if name in region.indices]
    if not found:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    return values, counts.astype(np.int64)


def _stability(regions: Sequence[Selected], at_least: int, splits: int, seed: int) -> float | None:
    half = len(regions) // 2
    if half < 2:
        return None
    share = -(-at_least * half // len(regions))  # rounded up
    ious = []
    for split in range(splits):
        order = random.Random(f"{seed} {split}").sample(range(len(regions)), 2 * half)  # noqa: S311  not a secret
        try:
            one, other = (
                consensus([regions[number] for number in sorted(group)], share)
                for group in (order[:half], order[half:])
            )
        except RegionError:
            return None
        ious.append(one.iou(other))
    return float(np.mean(ious))
