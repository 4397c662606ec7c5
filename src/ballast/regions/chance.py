"""What two or more regions would share if each were drawn at random, with its number of weights in every stratum.

A stratum is a weight matrix (an expert of a stack is one), or a kind of unit. The numbers per stratum decide
everything: a region shuffled within a stratum of N places shares Hypergeometric(N, a, b) of them with another, so no
bit has to be moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from ballast.errors import RegionError
from ballast.regions.arrays import Counts
from ballast.regions.region import Region

SMALL = 200  # below this size the mean of a ratio is not the ratio of the means
LARGEST_POPULATION = 10**9  # from here on NumPy draws no hypergeometric numbers
MOST_STRATA = 2000  # above, the sum over strata is normal for every purpose


class Permutation(NamedTuple):
    """A one-sided test of the shared number against stratified chance.

    Attributes:
        p: (1 + draws that share at least as much) / (draws + 1), in (0, 1].
        draws: Number of draws.
        drawn: `hypergeometric`, which is exact, or `normal` with the exact mean and variance, where a stratum has 10^9
            places or there are more than 2,000 strata.
    """

    p: float
    draws: int
    drawn: str


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


def chance_of_all(selected: Counts, sizes: Counts) -> float:
    """Expected weights in all of k random regions over expected weights in any: the chance level of a k-way IoU.

    Args:
        selected: Weights per region and stratum, (regions, strata).
        sizes: Weights there are, (strata,).
    """
    densities = selected / np.maximum(sizes, 1)  # (regions, strata); without places nothing is selected
    in_all = (sizes * densities.prod(axis=0)).sum()
    in_any = (sizes * (1 - (1 - densities).prod(axis=0))).sum()
    return float(in_all / in_any)


def intersection_moments(first: Counts, second: Counts, sizes: Counts) -> tuple[float, float]:
    """Mean and variance of the number of shared weights under stratified chance (hypergeometric in every stratum)."""
    a, b, n = (counts.astype(np.float64) for counts in (first, second, np.maximum(sizes, 1)))
    variance = a * b * (n - a) * (n - b) / (n * n * np.maximum(n - 1, 1))
    return float((a * b / n).sum()), float(variance.sum())


def excess(intersection: int, first: Counts, second: Counts, sizes: Counts) -> float | None:
    """(intersection - its mean) / its standard deviation under stratified chance; None if it cannot vary."""
    mean, variance = intersection_moments(first, second, sizes)
    return (intersection - mean) / math.sqrt(variance) if variance > 0 else None


def size_cap(first: Counts, second: Counts) -> float:
    """The highest IoU that the numbers per stratum allow: sum min(a_s, b_s) / sum max(a_s, b_s)."""
    return float(np.minimum(first, second).sum() / np.maximum(first, second).sum())


def permutation_test(
    intersection: int, first: Counts, second: Counts, sizes: Counts, *, draws: int, seed: Sequence[int]
) -> Permutation:
    """How often a region shuffled within every stratum shares as much as observed.

    Args:
        intersection: Observed number of shared weights.
        first: Weights of the one region per stratum, (strata,).
        second: Weights of the other, (strata,).
        sizes: Weights there are, (strata,).
        draws: Number of shuffles.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    busy = (first > 0) & (second > 0)
    a, b, n = first[busy], second[busy], sizes[busy]
    drawn: NDArray[np.floating] | Counts
    if len(n) > MOST_STRATA or (n >= LARGEST_POPULATION).any():
        mean, variance = intersection_moments(a, b, n)
        drawn = generator.normal(mean, math.sqrt(variance), draws).round()
        name = "normal"
    else:
        drawn = generator.hypergeometric(a, n - a, b, (draws, len(n))).sum(axis=1)
        name = "hypergeometric"
    return Permutation((1 + int((drawn >= intersection).sum())) / (draws + 1), draws, name)


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
