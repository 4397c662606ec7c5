"""One bit for each entry of a parameter, in words of 64: what regions share is counted 64 entries at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ballast.regions.arrays import Counts, Indices
from ballast.regions.layout import TensorLayout

Words = NDArray[np.uint64]  # (ceil(numel / 64),) least significant bit first, flat C order, padded with zeros

WORD = 64
CHUNK = 1 << 15  # words, 256 KiB: what is ANDed stays in the cache until it is counted


def packed_words(indices: Indices, numel: int) -> Words:
    """Flat indices (k,) as words (ceil(numel / 64),)."""
    mask = np.zeros(-(-numel // WORD) * WORD, np.bool_)
    mask[indices] = True
    words: Words = np.packbits(mask, bitorder="little").view("<u8")
    return words


def unpacked_indices(words: Words) -> Indices:
    """Ascending flat indices (k,) of the bits that are set."""
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


def shared_count(first: Words, second: Words) -> int:
    """Number of bits that are set in both."""
    count = 0
    for start in range(0, len(first), CHUNK):
        both = first[start : start + CHUNK] & second[start : start + CHUNK]
        count += int(np.bitwise_count(both).sum(dtype=np.int64))
    return count


def count_by_matrix(words: Words, tensor: TensorLayout) -> Counts:
    """Bits that are set in each weight matrix of a parameter, (matrices,)."""
    size = tensor.numel // tensor.matrices
    if tensor.expert_dim in (None, 0) and (tensor.matrices == 1 or size % WORD == 0):
        counts: Counts = np.bitwise_count(words).reshape(tensor.matrices, -1).sum(axis=1, dtype=np.int64)
        return counts
    return np.bincount(tensor.matrix_of(unpacked_indices(words)), minlength=tensor.matrices)


def shared_by_matrix(first: Words, second: Words, tensor: TensorLayout) -> Counts:
    """Bits that are set in both, in each weight matrix, (matrices,)."""
    if tensor.matrices == 1:
        return np.array([shared_count(first, second)], np.int64)
    return count_by_matrix(first & second, tensor)
