"""Chance given the numbers per row and per column: scores with a factor per row or column gather selections in some."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ballast.regions.arrays import Counts, Indices
from ballast.regions.layout import TensorLayout


class Margins(NamedTuple):
    """Selected entries of the weight matrices of one parameter.

    Attributes:
        rows: Per row as stored, (matrices, rows).
        columns: Per column as stored, (matrices, columns).
    """

    rows: Counts
    columns: Counts


def margins_of(tensor: TensorLayout, indices: Indices) -> Margins:
    """Count flat indices (k,) per row and per column of each matrix; what has one axis is one column."""
    axes = [axis for axis in range(len(tensor.shape)) if axis != tensor.expert_dim]
    width = tensor.shape[axes[-1]] if len(axes) > 1 else 1
    height = tensor.numel // tensor.matrices // width
    places = np.unravel_index(indices, tensor.shape)
    row = np.zeros(len(indices), np.int64)
    for axis in axes[:-1] if len(axes) > 1 else axes:
        row = row * tensor.shape[axis] + places[axis]
    column = places[axes[-1]] if len(axes) > 1 else np.zeros_like(row)
    matrix = tensor.matrix_of(indices).astype(np.int64)
    return Margins(
        np.bincount(matrix * height + row, minlength=tensor.matrices * height).reshape(-1, height),
        np.bincount(matrix * width + column, minlength=tensor.matrices * width).reshape(-1, width),
    )


def expected_by_margins(first: Margins, second: Margins) -> NDArray[np.float64]:
    """Entries expected in both, per matrix: (sum_i ra_i rb_i) (sum_j ca_j cb_j) / (a b), never more than min(a, b).

    An entry counts as if its row and its column were drawn apart from each other. That is a formula, not an exact
    mean: a cell can only be selected once, which it leaves out of account.

    Returns:
        (matrices,); 0 where a region has nothing.
    """
    a, b = (margins.rows.sum(axis=1).astype(np.float64) for margins in (first, second))
    rows, columns = ((x.astype(np.float64) * y).sum(axis=1) for x, y in zip(first, second, strict=True))
    if first.columns.shape[1] == 1:  # one column: given its rows, every entry would be fixed
        expected: NDArray[np.float64] = a * b / first.rows.shape[1]
    else:
        expected = np.minimum(rows * columns / np.maximum(a * b, 1), np.minimum(a, b))
    return expected
