"""Regions compared k at a time: what all of k regions share, over what any of them holds."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ballast.errors import UsageError
from ballast.regions.arrays import Counts
from ballast.regions.chance import chance_of_all
from ballast.regions.consensus import expected_memberships
from ballast.regions.counting import Selected
from ballast.regions.overlap import counted_outside

SUBSETS = 200  # of one size; all of them if there are no more
MOST_REGIONS = 63  # one bit each of an integer


class KWay(NamedTuple):
    """All subsets of k regions, or a sample of them.

    Attributes:
        regions: k.
        subsets: How many were looked at.
        iou: Mean of intersection / union over these.
        lowest: Of these.
        highest: Of these.
        chance: Mean of expected intersection / expected union, for random regions with the same numbers per matrix.
        in_at_least: Weights in at least k of all regions.
        in_at_least_chance: How many are expected of random regions with the same numbers per matrix.
    """

    regions: int
    subsets: int
    iou: float
    lowest: float
    highest: float
    chance: float
    in_at_least: int
    in_at_least_chance: float


def kway_overlaps(regions: Sequence[Selected], *, outside: Selected | None = None, seed: int = 0) -> list[KWay]:
    """Compare subsets of 2, 3, ... all regions.

    Args:
        regions: Two to 63, of one layout.
        outside: As for `overlaps`.
        seed: Of the subsets, where there are more than 200 of one size.

    Raises:
        UsageError: There are fewer or more regions.
    """
    n = len(regions)
    if not 2 <= n <= MOST_REGIONS:
        raise UsageError(f"{n} regions cannot be compared k at a time; give 2 to {MOST_REGIONS}.")
    shared = counted_outside(regions, outside)
    patterns, weights = _memberships(regions)
    members = np.bitwise_count(patterns)
    expected = expected_memberships(shared.selected, shared.sizes)
    found = []
    for k in range(2, n + 1):
        chosen = _subsets(n, k, seed)
        ious = [_iou(patterns, weights, subset) for subset in chosen]
        chances = [chance_of_all(shared.selected[list(subset)], shared.sizes) for subset in chosen]
        found.append(
            KWay(
                regions=k,
                subsets=len(chosen),
                iou=float(np.mean(ious)),
                lowest=min(ious),
                highest=max(ious),
                chance=float(np.mean(chances)),
                in_at_least=int(weights[members >= k].sum()),
                in_at_least_chance=float(expected[k:].sum()),
            )
        )
    return found


def _memberships(regions: Sequence[Selected]) -> tuple[Counts, Counts]:
    """Which regions weights are in, a bit for each, and how many weights are in just these; (patterns,) each."""
    kind = np.min_scalar_type((1 << len(regions)) - 1)
    totals: Counter[int] = Counter()
    for name, tensor in regions[0].metadata.layout.items():
        pattern = np.zeros(tensor.numel, kind)
        for number, region in enumerate(regions):
            if name in region.indices:
                pattern[region.indices[name].numpy()] |= kind.type(1 << number)
        values, counts = np.unique(pattern[pattern > 0], return_counts=True)
        totals.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return np.array([*totals.keys()], np.int64), np.array([*totals.values()], np.int64)


def _subsets(n: int, k: int, seed: int) -> list[tuple[int, ...]]:
    """All subsets of k of n numbers, or 200 different ones."""
    if math.comb(n, k) <= SUBSETS:
        return list(itertools.combinations(range(n), k))
    generator = random.Random(f"{seed} {n} {k}")  # noqa: S311  not a secret
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < SUBSETS:
        drawn.add(tuple(sorted(generator.sample(range(n), k))))
    return sorted(drawn)


def _iou(patterns: Counts, weights: Counts, subset: Sequence[int]) -> float:
    mask = sum(1 << number for number in subset)
    inside = patterns & mask
    return float(weights[inside == mask].sum() / weights[inside > 0].sum())
