"""The gap curve: layer by layer, how much further harmful prompts are from normal ones than these from each other.

    gap[l] = arccos(c_NM[l]) - arccos(c_NN[l])   in degrees                    (arXiv 2408.17003, section 3)

c_NN is the mean cosine of the last token's hidden states over all pairs of normal prompts, c_NM over all pairs of a
normal and a harmful (malicious) one, both read off one table of cosines per layer. Bands come from drawing prompts, not
pairs: two pairs that share a prompt are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from ballast.errors import PromptError

Angle = Literal["angle_of_mean", "mean_of_angles"]
RESAMPLES = 1000
LEVEL = 0.95


class Window(NamedTuple):
    """Layers `start` to `end - 1`."""

    start: int
    end: int


@dataclass(frozen=True, eq=False)
class GapCurve:
    """A gap per layer, all (L,) fp64 in degrees.

    Attributes:
        gap: The estimate.
        low: Lower end of its 95 % bootstrap band.
        high: Upper end.
        error: Its bootstrap standard error.
    """

    gap: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    error: torch.Tensor

    def is_clear(self) -> bool:
        """Whether the largest gap is above zero by two standard errors."""
        top = int(self.gap.argmax())
        return bool(self.gap[top] > 0 and self.gap[top] >= 2 * self.error[top])

    def first_guess(self) -> Window:
        """From the first layer with a tenth of the largest gap to the first with nine tenths of it, both included."""
        largest = self.gap.max()
        start = int((self.gap >= 0.1 * largest).nonzero()[0])
        last = start + int((self.gap[start:] >= 0.9 * largest).nonzero()[0])
        return Window(start, last + 1)

    def increments(self) -> torch.Tensor:
        """(L,) fp32: by how much each layer widens the gap, 0 where it does not.

        Before the first layer the gap is 0: the last token is the same for all prompts, it belongs to the template.
        """
        return torch.diff(self.gap, prepend=torch.zeros(1, dtype=self.gap.dtype)).clamp_min(0).float()


def gap_curve(normal: torch.Tensor, harmful: torch.Tensor, angle: Angle, seed: int) -> GapCurve:
    """The curve with its bootstrap band over prompts.

    Args:
        normal: (L, n, H) hidden states of normal prompts, n at least 2.
        harmful: (L, m, H) of harmful ones.
        angle: `angle_of_mean` is the arccos of the mean cosine, as published; `mean_of_angles` the mean of arccos.
        seed: Of the resamples.

    Raises:
        PromptError: There are fewer than two normal prompts, so no pair of them.
    """
    if normal.shape[1] < 2:
        raise PromptError("The gap needs pairs of normal prompts; give a normal set with at least two.")
    generator = np.random.default_rng(seed)
    of_normal = _draws(normal.shape[1], generator)
    of_normal = of_normal[(of_normal > 0).sum(dim=1) > 1]  # one prompt alone, drawn again and again, has no pair
    of_harmful = _draws(harmful.shape[1], generator)[: len(of_normal)]
    rows = [_gaps(*layer, of_normal, of_harmful, angle) for layer in zip(normal, harmful, strict=True)]
    gaps = torch.stack(rows)  # (L, 1 + resamples), the estimate first
    drawn, tail = gaps[:, 1:], (1 - LEVEL) / 2
    return GapCurve(gaps[:, 0], drawn.quantile(tail, dim=1), drawn.quantile(1 - tail, dim=1), drawn.std(dim=1))


def _draws(size: int, generator: np.random.Generator) -> torch.Tensor:
    """(1 + resamples, size) fp64: how often each prompt is drawn; the first row has every prompt once."""
    drawn = generator.multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    return torch.cat([torch.ones(1, size, dtype=torch.float64), torch.from_numpy(drawn).double()])


def _gaps(
    normal: torch.Tensor, harmful: torch.Tensor, of_normal: torch.Tensor, of_harmful: torch.Tensor, angle: Angle
) -> torch.Tensor:
    """(1 + resamples,) gaps of one layer, in degrees.

    Sums are fp64: after the first layers all cosines are near 1, where arccos is steep.
    """
    within, between = _cosines(normal, normal), _cosines(normal, harmful)  # (n, n), (n, m)
    if angle == "mean_of_angles":
        within, between = within.arccos(), between.arccos()
    within.fill_diagonal_(0)  # a prompt is no pair with itself, also when it is drawn twice
    pairs = of_normal.sum(dim=1) ** 2 - (of_normal**2).sum(dim=1)
    inside = (of_normal @ within * of_normal).sum(dim=1) / pairs
    across = (of_normal @ between * of_harmful).sum(dim=1) / (of_normal.sum(dim=1) * of_harmful.sum(dim=1))
    if angle == "angle_of_mean":
        inside, across = inside.clamp(-1, 1).arccos(), across.clamp(-1, 1).arccos()
    return (across - inside).rad2deg()


def _cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine of every pair, fp64."""
    one, other = (torch.nn.functional.normalize(states.double(), dim=1) for states in (first, second))
    return (one @ other.T).clamp(-1, 1)
