"""Selection within each output neuron of a weight matrix."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from ballast.errors import UsageError
from ballast.regions.arrays import Indices, index_type
from ballast.regions.layout import TensorLayout
from ballast.regions.threshold import Direction, chunks_of

BLOCK = 1 << 22  # scores that are ranked at a time


class RowsFound(NamedTuple):
    """What was selected in the rows of one parameter.

    Attributes:
        indices: Ascending flat C-order indices, (k,).
        ties_taken: Selected weights whose score equals the cut of their row.
        ties_left: Weights with such a score that were not selected.
        short_rows: Rows with fewer scores above zero than their share.
    """

    indices: Indices
    ties_taken: int
    ties_left: int
    short_rows: int


def top_of_rows(
    name: str, scores: torch.Tensor, layout: TensorLayout, fraction: Fraction, direction: Direction
) -> RowsFound:
    """Select floor(fraction * inputs) weights of every output neuron; ties go to the first inputs, zeros are left out.

    Args:
        name: Name of the parameter, for errors.
        scores: fp32 in the shape of the parameter.
        layout: Tells the axis of the output neurons and that of the experts.
        fraction: In (0, 1].
        direction: `top` or `bottom`; `bottom` takes zeros too.

    Raises:
        UsageError: The parameter has no output neurons.
        NumericalError: A score is NaN, infinite or negative.
    """
    if layout.orientation == "none" or len(layout.shape) < 2:
        raise UsageError(f"{name} has no output neurons to rank within; leave it out or choose scope per_tensor.")
    for _ in chunks_of(name, scores):
        pass  # only looks for scores that cannot be ranked
    selected = torch.zeros(layout.shape, dtype=torch.bool, device=scores.device)
    ties_taken = ties_left = short_rows = 0
    for matrix, mask in zip(_matrices(scores, layout), _matrices(selected, layout), strict=True):
        k = math.floor(fraction * matrix.shape[1])
        if k == 0:
            continue
        height = max(1, BLOCK // matrix.shape[1])
        for start in range(0, len(matrix), height):
            block = matrix[start : start + height]
            cut = block.topk(k, dim=1, largest=direction == "top").values[:, -1:]  # (rows, 1)
            beyond = block > cut if direction == "top" else block < cut  # (rows, inputs)
            tied = block == cut
            if direction == "top":
                short_rows += int((cut == 0).sum())
                tied &= cut > 0
            taken = tied & (tied.cumsum(1) <= k - beyond.sum(1, keepdim=True))
            mask[start : start + height] = beyond | taken
            ties_taken += int(taken.sum())
            ties_left += int(tied.sum() - taken.sum())
    places: Indices = np.flatnonzero(selected.cpu().numpy()).astype(index_type(layout.numel))
    return RowsFound(places, ties_taken, ties_left, short_rows)


def _matrices(tensor: torch.Tensor, layout: TensorLayout) -> list[torch.Tensor]:
    """Views (output neurons, inputs) of each weight matrix in a parameter, one per expert."""
    stack = [tensor] if layout.expert_dim is None else tensor.unbind(layout.expert_dim)
    return [matrix if layout.orientation == "out_in" else matrix.mT for matrix in stack]
