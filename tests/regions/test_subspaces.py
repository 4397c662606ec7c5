from __future__ import annotations

import numpy as np
import pytest
import torch

from ballast.errors import RegionError
from ballast.regions.subspaces import subspace_overlap


def projection(columns: torch.Tensor) -> torch.Tensor:
    basis = torch.linalg.qr(columns.double()).Q
    return basis @ basis.T


def test_a_plane_and_a_line_at_thirty_degrees():
    plane = projection(torch.eye(4)[:, :2])
    line = projection(torch.tensor([[3**0.5 / 2], [0.0], [0.5], [0.0]], dtype=torch.float64))
    found = subspace_overlap(plane, line)
    assert found.ranks == (2, 1)
    assert found.overlap == pytest.approx(3 / 4)
    assert found.iou == pytest.approx(0.75 / 2.25)
    assert found.angles == pytest.approx((30.0,))
    assert found.chance == 2 / 4


def test_equal_orthogonal_and_random_subspaces():
    first = projection(torch.eye(6)[:, :3])
    assert subspace_overlap(first, first)[1] == pytest.approx(1)
    assert subspace_overlap(first, first).iou == pytest.approx(1)
    other = subspace_overlap(first, projection(torch.eye(6)[:, 3:]))
    assert (other.overlap, other.iou) == pytest.approx((0, 0))
    assert other.angles == pytest.approx((90, 90, 90))
    generator = torch.Generator().manual_seed(0)
    drawn = [subspace_overlap(first, projection(torch.randn(6, 2, generator=generator))) for _ in range(400)]
    assert np.mean([one.overlap for one in drawn]) == pytest.approx(drawn[0].chance, rel=0.05)
    assert np.mean([one.iou for one in drawn]) == pytest.approx(drawn[0].iou_chance, rel=0.08)


def test_what_has_no_overlap_is_refused():
    with pytest.raises(RegionError, match="different matrices"):
        subspace_overlap(torch.eye(3).double(), torch.eye(4).double())
    with pytest.raises(RegionError, match="undefined"):
        subspace_overlap(torch.eye(3).double(), torch.zeros(3, 3).double())
