"""Controls: scores that a method must beat to be worth its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ballast.locate.engine import eligible_parameters
from ballast.locate.references import refusal_rows
from ballast.locate.registry import Found, Task, register
from ballast.models.fingerprint import seed_of
from ballast.models.sigma import scale_by_sigma
from ballast.prompts.refusals import REFUSALS
from ballast.regions.metadata import Granularity


@register("gradient")
@dataclass(frozen=True)
class Gradient:
    """|dS/dW| with S the mean log-probability per token of refusals; ESI without the matrix's scale.

    Attributes:
        refusals: Wordings used for prompts that bring no response of their own.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "control"
    fidelity: ClassVar[str] = "ours: same rows and sums as ESI's likelihood estimator"
    needs: ClassVar[str] = "harmful prompts"

    refusals: tuple[str, ...] = REFUSALS

    def score(self, task: Task) -> Found:
        """Score every eligible weight by the absolute mean gradient."""
        rows = refusal_rows(task.lm, task.prompts, self.refusals)
        scores = task.gradients(rows, fold="sum")
        for value in scores.values():
            value.abs_()
        return Found(scores, {"prompts_used": len(task.prompts), "rows": len(rows)})


@register("gradient_times_weight")
@dataclass(frozen=True)
class GradientTimesWeight(Gradient):
    """|W * dS/dW|: to first order how much S changes without the weight; SNIP with the absolute value at the end."""

    def score(self, task: Task) -> Found:
        """Score every eligible weight by the absolute product of the weight and its mean gradient."""
        found = super().score(task)
        for name, value in eligible_parameters(task.lm).items():
            found.scores[name].mul_(value.detach().abs())
        return found


@register("sigma")
@dataclass(frozen=True)
class Sigma:
    """The standard deviation of the weight's matrix: ESI without the gradient, equal for all weights of a matrix."""

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "control"
    fidelity: ClassVar[str] = "ours: the sigma of ESI; a share of all weights takes whole matrices, ties by name"
    needs: ClassVar[str] = "nothing"

    def score(self, task: Task) -> Found:
        """Score every eligible weight by the standard deviation of its matrix, per expert."""
        scores = {}
        for name, value in eligible_parameters(task.lm).items():
            scores[name] = torch.ones_like(value, dtype=torch.float32)
            scale_by_sigma(task.lm.parts.by_name(name), value, scores[name])
        return Found(scores)


@register("magnitude")
@dataclass(frozen=True)
class Magnitude:
    """|W|: knows nothing about safety."""

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "control"
    fidelity: ClassVar[str] = "ours: absolute value of the weight in fp32"
    needs: ClassVar[str] = "nothing"

    def score(self, task: Task) -> Found:
        """Score every eligible weight by its absolute value."""
        return Found({name: value.detach().float().abs() for name, value in eligible_parameters(task.lm).items()})


@register("random")
@dataclass(frozen=True)
class Random:
    """Uniform noise; the selection scope decides between a uniform and a per-tensor random region."""

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "control"
    fidelity: ClassVar[str] = "ours: uniform in (0, 1], generator seeded by the seed and the parameter's name"
    needs: ClassVar[str] = "nothing"

    def score(self, task: Task) -> Found:
        """Draw a score for every eligible weight; the same seed draws the same scores on any machine."""
        scores = {}
        for name, value in eligible_parameters(task.lm).items():
            generator = torch.Generator().manual_seed(seed_of(task.seed, name))
            scores[name] = 1 - torch.rand(value.shape, generator=generator)  # in (0, 1]: a score of 0 is never selected
        return Found(scores)
