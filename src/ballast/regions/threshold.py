"""The k-th largest of very many scores, exactly and without sorting them.

Non-negative fp32 numbers have the same order as their bit patterns. One pass counts the high 16 bits of all scores
and finds the bin that holds rank k; a second pass counts the low 16 bits within that bin. Out come the threshold and
the numbers of scores beyond it and equal to it. Memory is two tables of counts, however many scores there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ballast.errors import NumericalError, RegionError, UsageError
from ballast.regions.arrays import Counts
from ballast.shards import mesh_of, own_part, summed

Direction = Literal["top", "bottom"]
Bits = NDArray[np.int32]

CHUNK = 1 << 18  # scores; 1 MiB stays in the second-level cache through the passes over it
HIGH_BINS = 1 << 15  # high halves of non-negative numbers
LOW_BINS = 1 << 16
INFINITY_BITS = 0x7F800000
NEGATIVE_ZERO_BITS = -(1 << 31)


class Threshold(NamedTuple):
    """Where a selection of the k largest (or smallest) scores is cut.

    Attributes:
        value: The k-th largest score (k-th smallest for direction `bottom`).
        above: Number of scores beyond it: greater (smaller for direction `bottom`). All of them are selected.
        ties_taken: Number of scores equal to it that are selected, k - above; at least 1.
        ties_total: Number of scores equal to it.
    """

    value: float
    above: int
    ties_taken: int
    ties_total: int

    @property
    def bits(self) -> int:
        """The value as a bit pattern."""
        return int(np.float32(self.value).view(np.int32))


def chunks_of(name: str, scores: torch.Tensor) -> Iterator[Bits]:
    """The bit patterns of one tensor's scores in flat C order, (<= CHUNK,) int32 each; -0 reads as +0.

    Of a tensor that is spread over processes, those that this one holds.

    Raises:
        TypeError: The scores are not fp32.
        NumericalError: A score is NaN, infinite or negative.
    """
    if scores.dtype != torch.float32:
        raise TypeError(f"scores of {name} are {scores.dtype}, not float32")
    flat = own_part(scores).detach().reshape(-1).cpu().numpy()
    for start in range(0, flat.size, CHUNK):
        values = flat[start : start + CHUNK]
        bits: Bits = values.view(np.int32)
        if bits.min() < 0:
            if ((bits < 0) & (bits != NEGATIVE_ZERO_BITS)).any():
                raise NumericalError(f"The scores of {name} hold a negative number or NaN; scores are magnitudes.")
            bits = np.where(bits < 0, np.int32(0), bits)
        if bits.max() >= INFINITY_BITS:
            raise NumericalError(
                f"The scores of {name} hold NaN or infinity; load the model in float32 or drop overflowing prompts."
            )
        yield bits


def exact_threshold(
    scores: Mapping[str, torch.Tensor], k: int, direction: Direction = "top", *, zero_allowed: bool = False
) -> Threshold:
    """The k-th largest (or smallest) score of all tensors together, identical to a full sort.

    Args:
        scores: fp32 tensors of any shape, non-negative and finite. Read one at a time and twice, so a mapping that
            forms its values when asked works.
        k: How many scores are to be selected, at least 1.
        direction: `top` for the largest, `bottom` for the smallest.
        zero_allowed: Return a threshold of 0 instead of raising, so that the caller can leave the zeros out.

    Raises:
        NumericalError: A score is NaN, infinite or negative; the tensor is named.
        RegionError: k is 0, or fewer than k scores are greater than 0 (direction `top`).
        UsageError: There are fewer than k scores.
    """
    if k < 1:
        raise RegionError("No weight would be selected; ask for a larger fraction.")
    high = _counted(scores, HIGH_BINS, lambda bits: bits >> 16)
    total = int(high.sum())
    if k > total:
        raise UsageError(f"{k} weights were asked for but only {total} have scores; ask for fewer.")
    high_bin, beyond_bin = _bin_of_rank(high, k, direction)

    low = _counted(scores, LOW_BINS, lambda bits: bits[(bits >> 16) == high_bin] & (LOW_BINS - 1))
    low_bin, beyond_low = _bin_of_rank(low, k - beyond_bin, direction)

    above = beyond_bin + beyond_low
    value = float(np.array(high_bin << 16 | low_bin, np.int32).view(np.float32))
    if direction == "top" and value == 0 and not zero_allowed:
        raise RegionError(
            f"Only {above} of {total} scores are above zero but {k} are needed ({k - above} too few); "
            "ask for a smaller fraction or locate with more prompts."
        )
    return Threshold(value, above, k - above, int(low[low_bin]))


def _counted(scores: Mapping[str, torch.Tensor], bins: int, halves: Callable[[Bits], Bits]) -> Counts:
    """How often each half of a bit pattern occurs, (bins,), over all processes that hold scores."""
    counts = np.zeros(bins, np.int64)
    mesh = None
    for name, tensor in scores.items():
        mesh = mesh_of(tensor)
        for bits in chunks_of(name, tensor):
            counted = halves(bits)
            if counted.size:
                counts += np.bincount(counted, minlength=bins)
    return summed(counts, mesh)


def _bin_of_rank(counts: Counts, rank: int, direction: Direction) -> tuple[int, int]:
    """The bin that holds the rank-th item from the chosen end, and how many items lie beyond that bin."""
    ordered = counts[::-1] if direction == "top" else counts
    reached = ordered.cumsum()
    position = int(np.searchsorted(reached, rank))
    beyond = int(reached[position] - ordered[position])
    return (len(counts) - 1 - position if direction == "top" else position), beyond
