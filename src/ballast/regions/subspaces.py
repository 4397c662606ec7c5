"""How much two sets of directions of a weight matrix have in common, such as the ranks that ActSVD finds.

    t = |V1^T V2|_F^2 = tr(P1 P2),    overlap = t / min(r1, r2),    IoU = t / (r1 + r2 - t)

with orthonormal bases V (out, r) and projections P = V V^T. A random subspace gives E t = r1 r2 / out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ballast.errors import RegionError


class SubspaceOverlap(NamedTuple):
    """Two subspaces compared.

    Attributes:
        ranks: Their dimensions.
        overlap: t / min(r1, r2), in [0, 1].
        chance: Its expectation for a random subspace, max(r1, r2) / out.
        iou: t / (r1 + r2 - t), in [0, 1].
        iou_chance: The same with the expectation of t.
        angles: Principal angles in degrees, ascending, (min(r1, r2),).
    """

    ranks: tuple[int, int]
    overlap: float
    chance: float
    iou: float
    iou_chance: float
    angles: tuple[float, ...]


def subspace_overlap(first: torch.Tensor, second: torch.Tensor) -> SubspaceOverlap:
    """Compare two subspaces of one space.

    Args:
        first: Orthogonal projection on the one, (out, out), fp64.
        second: Projection on the other.

    Raises:
        RegionError: They belong to spaces of different size, or one has no direction.
    """
    if first.shape != second.shape:
        raise RegionError(
            f"Projections of {tuple(first.shape)} and {tuple(second.shape)} belong to different matrices."
        )
    out = len(first)
    ranks = (round(float(first.trace())), round(float(second.trace())))
    if min(ranks) == 0:
        raise RegionError("The overlap with no direction at all is undefined; locate more ranks.")
    together = float((first * second).sum())
    least, expected = min(ranks), ranks[0] * ranks[1] / out
    squares = torch.linalg.eigvalsh(first @ second @ first)[-least:].clamp(0, 1)  # squared cosines, ascending
    return SubspaceOverlap(
        ranks=ranks,
        overlap=together / least,
        chance=max(ranks) / out,
        iou=together / (sum(ranks) - together),
        iou_chance=expected / (sum(ranks) - expected),
        angles=tuple(squares.flip(0).sqrt().arccos().rad2deg().tolist()),
    )
