"""Weights that at least k of n regions agree on, and how much of that would agree with other regions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
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
            None with fewer than four regions, or where both halves agree on nothing.
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
        members = _members(regions, name)
        kept = members.values[members.counts(range(len(regions))) >= at_least]
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
    n, half = len(regions), len(regions) // 2
    orders = [random.Random(f"{seed} {split}").sample(range(n), 2 * half) for split in range(splits)]  # noqa: S311
    exactly: Counts = np.zeros(n + 1, np.int64)
    halves: Counts = np.zeros((splits, half + 1, half + 1), np.int64)  # weights in i regions of one, j of the other
    for name in sorted(regions[0].metadata.layout):
        members = _members(regions, name)
        exactly += np.bincount(members.counts(range(n)), minlength=n + 1)
        for split, order in enumerate(orders):
            one, other = members.counts(order[:half]), members.counts(order[half:])
            together = np.bincount(one * (half + 1) + other, minlength=(half + 1) ** 2)
            halves[split] += together.reshape(half + 1, half + 1)
    expected = expected_memberships(selected, sizes)
    return [
        Agreement(
            at_least=k,
            weights=int(exactly[k:].sum()),
            chance=float(expected[k:].sum()),
            stability=_stability(halves, -(-k * half // n)) if half > 1 else None,  # the share, rounded up
        )
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
    for densities in selected / np.maximum(sizes, 1):  # without places nothing is selected
        probabilities[1:] = probabilities[1:] * (1 - densities) + probabilities[:-1] * densities
        probabilities[0] *= 1 - densities
    return probabilities @ sizes.astype(np.float64)


class _Members(NamedTuple):
    """Entries of one parameter that are in any region.

    Attributes:
        values: Flat indices, ascending, (m,).
        places: Per region, the positions in `values` of its entries.
    """

    values: Indices
    places: list[Indices]

    def counts(self, group: Iterable[int]) -> Counts:
        """In how many regions of a group each entry is, (m,)."""
        found = np.zeros(len(self.values), np.int64)
        for number in group:
            found[self.places[number]] += 1
        return found


def _members(regions: Sequence[Selected], name: str) -> _Members:
    nothing = np.zeros(0, np.int32)
    found = [region.indices[name].numpy() if name in region.indices else nothing for region in regions]
    values, inverse = np.unique(np.concatenate(found), return_inverse=True)
    return _Members(values, np.split(inverse, np.cumsum([len(one) for one in found])[:-1]))


def _stability(halves: Counts, at_least: int) -> float | None:
    """Mean IoU of the weights in at least so many regions of both halves; (splits, h + 1, h + 1)."""
    both = halves[:, at_least:, at_least:].sum(axis=(1, 2))
    either = halves.sum(axis=(1, 2)) - halves[:, :at_least, :at_least].sum(axis=(1, 2))
    return float((both / either).mean()) if either.all() else None
