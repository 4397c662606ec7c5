"""What regions share, counted in one pass over their parameters: no more than one parameter of each is in memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ballast.regions.arrays import Counts
from ballast.regions.bits import Words, count_by_matrix, packed_words, shared_by_matrix
from ballast.regions.layout import TensorLayout
from ballast.regions.margins import Margins, expected_by_margins, margins_of
from ballast.regions.metadata import RegionMetadata


class Selected(Protocol):
    """What is asked of a region that is compared: a `Region`, or a `RegionFile` that stays in its file."""

    @property
    def indices(self) -> Mapping[str, torch.Tensor]:
        """Per parameter with selected entries, their ascending unique flat indices; read once each."""
        ...

    @property
    def metadata(self) -> RegionMetadata:
        """How it came about."""
        ...


@dataclass(frozen=True, eq=False)
class Shared:
    """Counts per weight matrix, of which every measure of overlap is made.

    Attributes:
        layers: Decoder block of each matrix, None outside of the blocks.
        roles: Role of each matrix.
        sizes: Entries of each matrix, (matrices,).
        selected: Entries in each region, (regions, matrices).
        pairs: Positions of the two regions of each pair.
        both: Entries in both regions of a pair, (pairs, matrices).
        by_margins: Entries expected in both, given the numbers per row and per column, (pairs, matrices).
        in_all: Entries in all regions, (matrices,).
        in_any: Entries in at least one, (matrices,).
    """

    layers: tuple[int | None, ...]
    roles: tuple[str, ...]
    sizes: Counts
    selected: Counts
    pairs: tuple[tuple[int, int], ...]
    both: Counts
    by_margins: NDArray[np.float64]
    in_all: Counts
    in_any: Counts


def count_shared(regions: Sequence[Selected]) -> Shared:
    """Count what regions of one layout share, parameter by parameter.

    Args:
        regions: At least one, of one layout.
    """
    layout = sorted(regions[0].metadata.layout.items())
    matrices = [tensor for _, tensor in layout for _ in range(tensor.matrices)]
    pairs = tuple(itertools.combinations(range(len(regions)), 2))
    found = Shared(
        layers=tuple(tensor.layer for tensor in matrices),
        roles=tuple(tensor.role for tensor in matrices),
        sizes=np.array([tensor.numel // tensor.matrices for tensor in matrices], np.int64),
        selected=np.zeros((len(regions), len(matrices)), np.int64),
        pairs=pairs,
        both=np.zeros((len(pairs), len(matrices)), np.int64),
        by_margins=np.zeros((len(pairs), len(matrices))),
        in_all=np.zeros(len(matrices), np.int64),
        in_any=np.zeros(len(matrices), np.int64),
    )
    start = 0
    for name, tensor in layout:
        _count_parameter(found, slice(start, start + tensor.matrices), tensor, name, regions)
        start += tensor.matrices
    return found


def _count_parameter(found: Shared, where: slice, tensor: TensorLayout, name: str, regions: Sequence[Selected]) -> None:
    """Fill in the matrices `where`, which are those of one parameter."""
    words: dict[int, Words] = {}
    margins: dict[int, Margins] = {}
    for number, region in enumerate(regions):
        if name in region.indices:
            indices = region.indices[name].numpy()
            words[number] = packed_words(indices, tensor.numel)
            margins[number] = margins_of(tensor, indices)
            found.selected[number, where] = count_by_matrix(words[number], tensor)
    if not words:
        return
    found.in_any[where] = count_by_matrix(np.bitwise_or.reduce(list(words.values())), tensor)
    if len(words) == len(regions):
        found.in_all[where] = count_by_matrix(np.bitwise_and.reduce(list(words.values())), tensor)
    for pair, (first, second) in enumerate(found.pairs):
        if first in words and second in words:
            found.both[pair, where] = shared_by_matrix(words[first], words[second], tensor)
            found.by_margins[pair, where] = expected_by_margins(margins[first], margins[second])
