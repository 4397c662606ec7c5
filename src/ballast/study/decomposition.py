"""How much of what refinement does to an overlap follows from sizes alone, and how much says something.

S1, S2 are two regions, U the utility region, R1, R2 the refined ones; sums are over weight matrices s.

Taken out (`subtract`, R = S - U). With a = |S1 & S2 & U| / |S1 & S2| and b = |(S1 | S2) & U| / |S1 | S2|, exactly

    IoU' = IoU (1 - a) / (1 - b).

If U took shared weights and others alike within every matrix, as many of them as it did take, there would be left

    expected = sum I_s (1 - b_s) / sum D_s (1 - b_s),    I_s shared weights, D_s those in either, b_s as b in matrix s

(a ratio of expectations). expected - IoU is mechanical: some matrices were thinned more than others. IoU' - expected is
what remains: below zero if usefulness prefers what the two regions share.

Refilled (R as large as S, outside of U). The sizes are as before, but there are fewer places; the mechanical part is
the change of the chance level, from all places to those outside of U.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ballast.regions.arrays import Counts
from ballast.regions.overlap import Overlaps, PairOverlap


def decomposed(
    before: Overlaps, names: list[int], after: Overlaps, kept: list[int], *, thinned: bool
) -> list[dict[str, Any]]:
    """One row for each pair that was compared before and after.

    Args:
        before: The regions as located.
        names: Their numbers in the comparison.
        after: The refined regions, with chance outside of the utility region.
        kept: The numbers of those; some may be missing.
        thinned: Whether weights were taken out and not replaced.
    """
    earlier = {(names[pair.first], names[pair.second]): number for number, pair in enumerate(before.pairs)}
    rows = []
    for number, pair in enumerate(after.pairs):
        key = kept[pair.first], kept[pair.second]
        if key in earlier:
            rows.append(_row(before, earlier[key], after, number, key, thinned=thinned))
    return rows


def _row(
    before: Overlaps, was: int, after: Overlaps, now: int, names: tuple[int, int], *, thinned: bool
) -> dict[str, Any]:
    old, new = before.pairs[was], after.pairs[now]
    change = new.iou - old.iou
    expected = _thinned_alike(before, was, after, now) if thinned else None
    mechanical = new.chance - old.chance if expected is None else expected - old.iou
    row = {
        "first": names[0],
        "second": names[1],
        "iou": old.iou,
        "refined_iou": new.iou,
        "change": change,
        "mechanical": mechanical,
        "remaining": change - mechanical,
        "expected_iou": expected,
        "chance": old.chance,
        "refined_chance": new.chance,
        "size_cap": old.size_cap,
        "refined_size_cap": new.size_cap,
    }
    for side, (one, other) in {"first": (old.first, new.first), "second": (old.second, new.second)}.items():
        selected, left = before.selected[one], after.selected[other]
        row |= {f"weights_{side}": int(selected.sum()), f"refined_weights_{side}": int(left.sum())}
    return row | (_taken(before, old, after, new) if thinned else {})


def _thinned_alike(before: Overlaps, was: int, after: Overlaps, now: int) -> float | None:
    """The IoU if the utility region had taken shared weights and others alike within every matrix."""
    shared, either = before.both[was], _either(before, was)
    share_left = _either(after, now) / np.maximum(either, 1)  # 1 - b_s
    union = float((either * share_left).sum())
    return float((shared * share_left).sum()) / union if union else None


def _either(found: Overlaps, number: int) -> Counts:
    pair = found.pairs[number]
    either: Counts = found.selected[pair.first] + found.selected[pair.second] - found.both[number]
    return either


def _taken(before: Overlaps, old: PairOverlap, after: Overlaps, new: PairOverlap) -> dict[str, float | None]:
    """Shares in the utility region: a of what is shared, b of what is in either, and of each region beside chance."""
    useful = before.sizes - after.sizes  # (matrices,)
    found: dict[str, float | None] = {
        "shared_in_utility": 1 - new.intersection / old.intersection if old.intersection else None,
        "either_in_utility": 1 - new.union / old.union,
    }
    for side, (one, other) in {"first": (old.first, new.first), "second": (old.second, new.second)}.items():
        selected: NDArray[np.int64] = before.selected[one]
        total = int(selected.sum())
        found[f"{side}_in_utility"] = 1 - int(after.selected[other].sum()) / total
        found[f"{side}_in_utility_chance"] = float((selected * (useful / before.sizes)).sum()) / total
    return found
