"""The same-data ceiling of an overlap, and overlap with the noise of locating taken out (regions located on halves).

    corrected = (IoU - chance) / (ceiling - chance),    ceiling of a pair = sqrt(ceiling_1 ceiling_2)

0 is chance and 1 is as alike as regions from two halves of one prompt set; more than 1 can occur. IoU, chance and
ceilings are of regions located on the same number of prompts, for regions grow more alike with prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ballast.errors import UsageError
from ballast.regions.chance import chance_iou, flat_counts, matrix_sizes
from ballast.regions.region import Region

SMALLEST_ROOM = 0.02  # ceiling - chance below which nothing can be told
NORMAL_95 = 1.96


class Halves(NamedTuple):
    """Two regions of one method, located on disjoint halves of one prompt set."""

    first: Region
    second: Region


class Ceiling(NamedTuple):
    """How alike the regions of disjoint prompts of one set are.

    Attributes:
        prompts: Number on each side; None if that is not known.
        iou: Mean over the splits.
        chance: Mean chance level of the same regions.
        lowest: Of the splits.
        highest: Of the splits.
        splits: How many.
    """

    prompts: int | None
    iou: float
    chance: float
    lowest: float
    highest: float
    splits: int


class CorrectedOverlap(NamedTuple):
    """The overlap of two ways of locating, at half the prompts, beside what noise allows.

    Attributes:
        iou: Mean over splits of the IoU of opposite halves: a first one with a second one, and the other way round.
        chance: Their mean chance level, per weight matrix.
        ceilings: Mean IoU of the two halves of each side.
        ceiling: The root of their product.
        corrected: (iou - chance) / (ceiling - chance); None if that cannot be identified.
        low: End of its 95 % interval over prompts; None without resamples.
        high: The other end.
        splits: Random halvings.
        resamples: Halvings with prompts drawn anew, of which the interval is made.
    """

    iou: float
    chance: float
    ceilings: tuple[float, float]
    ceiling: float
    corrected: float | None
    low: float | None
    high: float | None
    splits: int
    resamples: int


def ceiling_of(halves: Sequence[Halves], prompts: int | None = None) -> Ceiling:
    """Compare the two regions of every split.

    Args:
        halves: At least one split.
        prompts: On each side, for the record.

    Raises:
        UsageError: There is no split.
    """
    if not halves:
        raise UsageError("A ceiling needs at least one split into halves; give one.")
    found = np.array([_iou_and_chance(*pair) for pair in halves])  # (splits, 2)
    ious = found[:, 0]
    mean, chance = found.mean(axis=0).tolist()
    return Ceiling(prompts, mean, chance, float(ious.min()), float(ious.max()), len(halves))


def corrected_overlap(
    first: Sequence[Halves], second: Sequence[Halves], resampled: Sequence[tuple[Halves, Halves]] = ()
) -> CorrectedOverlap:
    """Overlap, chance and ceiling at half the prompts, and the overlap with the noise of locating taken out.

    Only opposite halves are compared, so that two methods on one prompt set share no prompts either. The interval is
    corrected +- 1.96 standard errors; the error is that of the linear part (delta method) over `resampled`, for draws
    with repetition make every region noisier, which would shift percentiles.

    Args:
        first: Splits of the one side.
        second: Splits of the other, as many and with as many prompts a half.
        resampled: Splits of both sides, whose halves were drawn again with replacement.

    Raises:
        UsageError: There is no split, or the sides have different numbers.
    """
    if not first or len(first) != len(second):
        raise UsageError(f"The sides have {len(first)} and {len(second)} splits; give the same number, at least one.")
    return corrected_numbers(
        np.array([_numbers(one, other) for one, other in zip(first, second, strict=True)]),
        np.array([_numbers(one, other) for one, other in resampled]).reshape(-1, 4),
    )


def corrected_numbers(split: NDArray[np.float64], drawn: NDArray[np.float64]) -> CorrectedOverlap:
    """The same of halves that are compared already.

    Args:
        split: (splits, 4) mean IoU and mean chance of opposite halves, and the IoU of the halves of each side.
        drawn: (resamples, 4) the same with prompts drawn again, or (0, 4).
    """
    iou, chance, *ceilings = split.mean(axis=0).tolist()
    ceiling = math.sqrt(ceilings[0] * ceilings[1])
    enough = len(drawn) > 1
    if enough:
        error = float((_ceilings(drawn) - drawn[:, 1]).std(ddof=1))
    else:
        error = float((_ceilings(split) - split[:, 1]).std()) / math.sqrt(len(split))
    corrected = low = high = None
    room = ceiling - chance
    if room >= max(SMALLEST_ROOM, 2 * error):
        corrected = (iou - chance) / room
        if enough:
            linear = (drawn[:, 0] - corrected * _ceilings(drawn) - (1 - corrected) * drawn[:, 1]) / room
            half_width = NORMAL_95 * float(linear.std(ddof=1))
            low, high = corrected - half_width, corrected + half_width
    return CorrectedOverlap(
        iou, chance, (ceilings[0], ceilings[1]), ceiling, corrected, low, high, len(split), len(drawn)
    )


def _numbers(one: Halves, other: Halves) -> tuple[float, float, float, float]:
    """IoU and chance of opposite halves, and the IoU within each side."""
    across = np.mean([_iou_and_chance(one.first, other.second), _iou_and_chance(one.second, other.first)], axis=0)
    return float(across[0]), float(across[1]), one.first.iou(one.second), other.first.iou(other.second)


def _ceilings(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 4) to (n,): the roots of the products of both sides' ceilings."""
    roots: NDArray[np.float64] = np.sqrt(numbers[:, 2] * numbers[:, 3])
    return roots


def _iou_and_chance(one: Region, other: Region) -> tuple[float, float]:
    return one.iou(other), chance_iou(flat_counts(one), flat_counts(other), matrix_sizes(one))
