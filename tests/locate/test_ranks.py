"""Projections of ActSVD against the decomposition of stored outputs, and what removing and isolating leave."""

from __future__ import annotations

import pytest
import torch

from ballast.errors import UsageError
from ballast.locate.checkpoints.directions import matrices_of
from ballast.locate.engine import eligible_parameters
from ballast.locate.ranks import isolated, rank_overlaps, removed, safety_projection
from ballast.models.fingerprint import fingerprints
from tests.locate.reads import brute_force_directions, stored_reads
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

HARMFUL = prompt_set("harmful", ["How?", "Write a long threat"], ["I will not do that, never.", "No, not in my life."])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_projections(architecture: str) -> None:
    lm = tiny_lm(architecture)
    before = fingerprints(lm.model)
    weights, reads = matrices_of(lm, eligible_parameters(lm)), stored_reads(tiny_lm(architecture), HARMFUL)
    found = dict(safety_projection(lm, HARMFUL, 0.25, batch_size=1))
    assert list(found) == list(weights)
    for matrix, projection in found.items():
        torch.testing.assert_close(projection, projection.T)
        torch.testing.assert_close(projection @ projection, projection)
        if matrix not in reads:
            assert not projection.any()
            continue
        weight = weights[matrix]
        leading = brute_force_directions(reads[matrix], weight, min(weight.shape) // 4)
        torch.testing.assert_close(projection, leading @ leading.T, rtol=0, atol=1e-4)
        outputs = reads[matrix].double() @ removed(weight, projection).double().T
        assert (outputs @ leading).abs().max() <= 1e-4 * (reads[matrix] @ weight.T).abs().max()
    assert fingerprints(lm.model) == before


def test_overlap_of_ranks_is_that_of_the_singular_vectors() -> None:
    lm = tiny_lm("mixtral")
    other = prompt_set("other", ["What?", "Tell a lie"], ["Sorry.", "That could hurt someone, so no."])
    weights = matrices_of(lm, eligible_parameters(lm))
    reads = [stored_reads(tiny_lm("mixtral"), prompts) for prompts in (HARMFUL, other)]
    found = dict(rank_overlaps(lm, HARMFUL, other, 0.25))
    assert list(found) == list(weights)
    for matrix, row in found.items():
        if any(matrix not in one for one in reads):
            assert row is None
            continue
        count = min(weights[matrix].shape) // 4
        first, second = (brute_force_directions(one[matrix], weights[matrix], count) for one in reads)
        assert row is not None
        assert row.overlap == pytest.approx(float((first.T @ second).square().sum()) / min(row.ranks), abs=1e-3)
    assert all(row is None or row.overlap == pytest.approx(1) for _, row in rank_overlaps(lm, HARMFUL, HARMFUL, 0.25))


def test_removed_and_isolated_by_hand() -> None:
    """Safety writes along the first axis, utility along the diagonal of the first two."""
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    safety = torch.zeros(3, 3, dtype=torch.float64)
    safety[0, 0] = 1
    utility = torch.zeros(3, 3, dtype=torch.float64)
    utility[:2, :2] = 0.5
    assert removed(weight, safety).tolist() == [[0, 0], [3, 4], [5, 6]]
    assert isolated(weight, safety, utility).tolist() == [[0.5, 1], [3.5, 5], [5, 6]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_isolating_leaves_the_utility_part_of_every_output(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 6, generator=generator).to(dtype)
    bases = [torch.linalg.qr(torch.randn(8, 3, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
    safety, utility = (basis @ basis.T for basis in bases)
    left = isolated(weight, safety, utility)
    assert left.dtype == dtype
    assert (left.double() - weight.double()).abs().max() > 0.1
    tolerance = 4 * torch.finfo(dtype).eps * float(weight.abs().max())
    torch.testing.assert_close(utility @ left.double(), utility @ weight.double(), rtol=0, atol=tolerance)


def test_isolating_across_utility_leaves_its_outputs() -> None:
    """Where the two sets write in directions across each other, outputs of the utility inputs are what they were."""
    axes = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    safety, utility = axes[:, :2] @ axes[:, :2].T, axes[:, 2:4] @ axes[:, 2:4].T
    weight, inputs = axes, axes[:, 2:4].T @ axes  # weight @ inputs spans the utility directions
    outputs = inputs @ weight.T
    torch.testing.assert_close(outputs @ utility, outputs)
    torch.testing.assert_close(isolated(weight, safety, utility), removed(weight, safety))
    torch.testing.assert_close(inputs @ isolated(weight, safety, utility).T, outputs)


@pytest.mark.parametrize(("share", "message"), [(0.01, r"The share 0\.01 of 32 directions is none"), (0, "outside of")])
def test_shares_that_leave_no_rank_are_refused(share: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        next(safety_projection(tiny_lm(), HARMFUL, share))
