"""The low-rank optimizer against Adam on factors that autograd itself sees."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from ballast.errors import UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import seed_of
from ballast.tune.low_rank import LowRankAdam
from tests.worlds import tiny_lm

torch.set_num_threads(1)

RANK, SEED, STEPS = 3, 5, 4
IDS = torch.arange(4, 28).view(2, 12)


def some_matrices(lm: LanguageModel) -> dict[str, torch.nn.Parameter]:
    """One of attention and two of a feed-forward network, in the last layer."""
    wanted = ("query", "qkv", "gate", "gate_up", "up", "down")
    found = {
        part.role.rpartition(".")[2]: part.name
        for part in lm.parts.eligible()
        if part.role.rpartition(".")[2] in wanted
    }
    return {name: lm.model.get_parameter(name) for name in list(found.values())[-3:]}


def loss(logits: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def twin(lm: LanguageModel, rate: float) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after some steps on leaf factors, and the gradient norms."""
    start = {name: value.detach().clone() for name, value in some_matrices(lm).items()}
    left, right = {}, {}
    for name, value in start.items():
        generator = torch.Generator().manual_seed(seed_of(SEED, name))
        drawn = torch.randn((*value.shape[:-2], RANK, value.shape[-1]), generator=generator)
        right[name] = (drawn / RANK**0.5).requires_grad_()
        left[name] = torch.zeros((*value.shape[:-1], RANK), requires_grad=True)
    factors = [*left.values(), *right.values()]
    optimizer = torch.optim.Adam(factors, lr=rate)
    norms = []
    for _ in range(STEPS):
        weights = {name: value + left[name] @ right[name] for name, value in start.items()}
        loss(functional_call(lm.model, weights, kwargs={"input_ids": IDS}).logits).backward()
        norms.append(float(torch.cat([factor.grad.flatten() for factor in factors if factor.grad is not None]).norm()))
        optimizer.step()
        optimizer.zero_grad()
    return {name: (value + left[name] @ right[name]).detach() for name, value in start.items()}, norms


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "mixtral", "gpt_oss"])
def test_equals_adam_on_explicit_factors(architecture: str) -> None:
    lm = tiny_lm(architecture)
    expected, expected_norms = twin(lm, rate=1e-2)
    matrices = some_matrices(lm)
    start = {name: value.detach().clone() for name, value in matrices.items()}
    norms = []
    with LowRankAdam(matrices, rank=RANK, lr=1.0, seed=SEED) as optimizer:
        optimizer.set_lr(1e-2)
        for _ in range(STEPS):
            logits = lm.model(input_ids=IDS).logits
            (0.5 * loss(logits)).backward(retain_graph=True)  # gradients of several passes add up
            (0.5 * loss(logits)).backward()
            norms.append(optimizer.gradient_norm())
            optimizer.step()
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    for name, value in matrices.items():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-4, atol=1e-5)
        change = (value.detach() - start[name]).double()
        assert torch.equal(torch.linalg.matrix_rank(change, rtol=1e-4), torch.full(change.shape[:-2], RANK))


def test_the_first_step_moves_weights_about_as_far_as_the_learning_rate() -> None:
    lm = tiny_lm()
    matrices = some_matrices(lm)
    start = {name: value.detach().clone() for name, value in matrices.items()}
    with LowRankAdam(matrices, rank=RANK, lr=1e-3, seed=SEED) as optimizer:
        loss(lm.model(input_ids=IDS).logits).backward()
        optimizer.step()
    for name, value in matrices.items():
        assert float((value.detach() - start[name]).std()) == pytest.approx(1e-3, rel=0.2)


def test_a_scaled_step_is_a_step_on_scaled_gradients() -> None:
    """Adam hardly sees a constant scale, so the second step tells: the first was tiny beside it."""
    changed = []
    for scale in (1.0, 1e-6):
        lm = tiny_lm()
        matrices = some_matrices(lm)
        with LowRankAdam(matrices, rank=RANK, lr=1e-3, seed=SEED) as optimizer:
            for factor in (scale, 1.0):
                loss(lm.model(input_ids=IDS).logits).backward()
                optimizer.step(factor)
        changed.append({name: value.detach().clone() for name, value in matrices.items()})
    assert any(not torch.allclose(changed[0][name], changed[1][name], atol=1e-5) for name in changed[0])


def test_hooks_go_and_gradients_do_not_stay() -> None:
    lm = tiny_lm()
    matrices = some_matrices(lm)
    with LowRankAdam(matrices, rank=RANK, lr=1e-3, seed=SEED) as optimizer:
        loss(lm.model(input_ids=IDS).logits).backward()
        assert all(value.grad is None for value in matrices.values())
        optimizer.step()
        assert optimizer.gradient_norm() == 0
    loss(lm.model(input_ids=IDS).logits).backward()
    assert all(value.grad is not None for value in matrices.values())


@pytest.mark.parametrize("rank", [0, 32])
def test_a_rank_that_does_not_fit_is_refused(rank: int) -> None:
    with pytest.raises(UsageError, match=rf"cannot have rank {rank}; use 1 to 31"):
        LowRankAdam(some_matrices(tiny_lm()), rank=rank, lr=1e-3, seed=SEED)
