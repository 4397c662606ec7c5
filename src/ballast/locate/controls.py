"""Controls: scores that a method must beat to be worth its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ballast.locate.engine import eligible_parameters
from ballast.locate.references import refusal_rows
from ballast.locate.registry import Found, Task, register
from ballast.locate.weights import scores_by_part
from ballast.models.fingerprint import seed_of
from ballast.models.parts import Part
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

        def score(part: Part) -> torch.Tensor:
            weight = task.lm.weight(part.name)
            scores = torch.ones_like(weight, dtype=torch.float32)
            scale_by_sigma(part, weight, scores)
            return scores

        return Found(scores_by_part(task.lm, score))


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
        return Found(scores_by_part(task.lm, lambda part: task.lm.weight(part.name).float().abs()))


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

        def score(part: Part) -> torch.Tensor:
            generator = torch.Generator().manual_seed(seed_of(task.seed, part.name))
            return 1 - torch.rand(part.shape, generator=generator)  # in (0, 1]: a score of 0 is never selected

        return Found(scores_by_part(task.lm, score))
