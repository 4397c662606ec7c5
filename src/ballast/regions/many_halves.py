"""Overlaps with the noise of locating taken out, for every pair of many regions: each file of a half is read once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ballast.regions.ceiling import CorrectedOverlap, corrected_numbers
from ballast.regions.chance import chance_iou
from ballast.regions.counting import Selected, Shared
from ballast.regions.overlap import counted_outside

FilesOfHalves = tuple[Selected, Selected]


def corrected_overlaps(
    splits: Sequence[Sequence[FilesOfHalves]], *, outside: Selected | None = None
) -> dict[tuple[int, int], CorrectedOverlap]:
    """What `corrected_overlap` says of every pair of n prompt sets, or of n methods.

    Args:
        splits: At least one; of each the two halves of every set, n of them in one order.
        outside: As for `overlaps`.

    Returns:
        By the numbers of the two sets, the smaller one first.
    """
    sides = len(splits[0])
    numbers: dict[tuple[int, int], list[tuple[float, ...]]] = {
        pair: [] for pair in itertools.combinations(range(sides), 2)
    }
    for split in splits:
        regions = [
            half for number in (0, 1) for half in (pair[number] for pair in split)
        ]  # all first ones, then all second
        shared = counted_outside(regions, outside)
        places = {pair: place for place, pair in enumerate(shared.pairs)}
        within = [_iou(shared, places[one, one + sides]) for one in range(sides)]
        for one, other in numbers:
            across = [places[one, other + sides], places[other, one + sides]]
            iou, chance = (float(np.mean([of(shared, place) for place in across])) for of in (_iou, _chance))
            numbers[one, other].append((iou, chance, within[one], within[other]))
    return {pair: corrected_numbers(np.array(rows), np.empty((0, 4))) for pair, rows in numbers.items()}


def _iou(shared: Shared, place: int) -> float:
    first, second = shared.pairs[place]
    both = int(shared.both[place].sum())
    return both / (int(shared.selected[first].sum() + shared.selected[second].sum()) - both)


def _chance(shared: Shared, place: int) -> float:
    first, second = shared.pairs[place]
    return chance_iou(shared.selected[first], shared.selected[second], shared.sizes)
