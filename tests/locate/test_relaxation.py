"""Relaxed tokens: the gradient of the mixture, and noise that nothing but its place decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ballast.errors import UsageError
from ballast.locate.soft.relaxation import Kind, Relaxation, gumbel_noise

torch.set_num_threads(1)

KINDS: tuple[Kind, ...] = ("gumbel", "softmax", "straight_through", "straight_through_gumbel")


def value_of(p: torch.Tensor) -> torch.Tensor:
    """Some function of the mixture that is not linear."""
    weights = torch.randn(p.shape, generator=torch.Generator().manual_seed(4), dtype=p.dtype)
    return ((p * weights).sum() ** 2).sin() + (p.square() * weights).sum()


def central_differences(
    function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor, step: float
) -> torch.Tensor:
    found = torch.zeros_like(at)
    for place in range(at.numel()):
        change = torch.zeros_like(at)
        change.view(-1)[place] = step
        found.view(-1)[place] = (function(at + change) - function(at - change)) / (2 * step)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
def test_gradient_of_the_logits(kind: Kind, tau: float) -> None:
    relaxation = Relaxation(kind, tau, 1, seed=0)
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    p = relaxation.probabilities(logits, "x", 0)
    value = value_of(p)
    (pulled,) = torch.autograd.grad(value, p, retain_graph=True)
    (expected,) = torch.autograd.grad(value, logits)
    found = relaxation.logit_gradient(p.detach(), pulled)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    differences = central_differences(
        lambda z: value_of(relaxation.probabilities(z, "x", 0)), logits.detach(), step=1e-5
    )
    torch.testing.assert_close(found, differences, rtol=1e-6, atol=1e-8)
    shifted = relaxation.logit_gradient(p.detach(), pulled + torch.tensor([[3.0], [-2.0], [5.0]], dtype=torch.float64))
    torch.testing.assert_close(shifted, found, rtol=1e-12, atol=1e-12)


class TestProbabilities:
    LOGITS = torch.tensor([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]])

    @pytest.mark.parametrize("kind", ["softmax", "straight_through"])
    def test_without_noise(self, kind: Kind) -> None:
        found = Relaxation(kind, 0.5, 1, seed=0).probabilities(self.LOGITS, "x", 0)
        torch.testing.assert_close(found, (2 * self.LOGITS).softmax(1))

    @pytest.mark.parametrize("kind", ["gumbel", "straight_through_gumbel"])
    def test_with_noise(self, kind: Kind) -> None:
        found = Relaxation(kind, 0.5, 3, seed=9).probabilities(self.LOGITS, "x", 2)
        torch.testing.assert_close(found, (2 * (self.LOGITS + gumbel_noise(2, 3, 9, "x", 2))).softmax(1))


class TestNoise:
    def test_belongs_to_its_prompt_draw_and_position(self) -> None:
        noise = gumbel_noise(3, 50, 0, "x", 0)
        assert torch.equal(gumbel_noise(3, 50, 0, "x", 0), noise)
        assert torch.equal(gumbel_noise(2, 50, 0, "x", 0), noise[:2])  # a longer answer changes nothing before
        others = [gumbel_noise(3, 50, 1, "x", 0), gumbel_noise(3, 50, 0, "y", 0), gumbel_noise(3, 50, 0, "x", 1)]
        rows = [row for found in (noise, *others) for row in found]
        assert len({tuple(row.tolist()) for row in rows}) == 12

    def test_is_gumbel(self) -> None:
        """The largest of logits plus noise is a draw from the softmax; the mean is Euler's constant."""
        logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
        noise = gumbel_noise(20_000, 4, 0, "x", 0)
        drawn = torch.bincount((logits + noise).argmax(1), minlength=4) / 20_000
        torch.testing.assert_close(drawn, logits.softmax(0), rtol=0, atol=0.012)  # three standard errors
        assert float(noise.mean()) == pytest.approx(0.5772, abs=0.014)


class TestSettings:
    def test_that_cannot_work(self) -> None:
        unknown: Any = "hard"
        with pytest.raises(UsageError, match="no relaxation 'hard'; use gumbel, softmax"):
            Relaxation(unknown, 0.3, 1, 0)
        with pytest.raises(UsageError, match="tau is 0; it must be above 0"):
            Relaxation("gumbel", 0, 1, 0)
        with pytest.raises(UsageError, match="softmax cannot have 2 draws"):
            Relaxation("softmax", 0.3, 2, 0)
        with pytest.raises(UsageError, match="gumbel cannot have 0 draws"):
            Relaxation("gumbel", 0.3, 0, 0)
