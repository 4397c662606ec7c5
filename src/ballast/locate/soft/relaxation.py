"""Chosen tokens as mixtures: probabilities that stand for the tokens of an answer, and their gradient.

The answer is generated greedily and stays fixed as what each position follows on; only the choice at the position
itself is relaxed. With logits z and temperature tau

    p_t = softmax((z_t + n) / tau),    dF/dz[t,v] = p[t,v] * (D[t,v] - sum_u p[t,u] D[t,u]) / tau,    D = dF/dp

n is Gumbel noise or 0 (Jang et al., arXiv 1611.01144). The straight-through kinds use p in the backward direction only:
the judge reads the tokens that were generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ballast.errors import UsageError
from ballast.models.fingerprint import seed_of

Kind = Literal["gumbel", "softmax", "straight_through", "straight_through_gumbel"]


@dataclass(frozen=True)
class Relaxation:
    """How the tokens of an answer are relaxed.

    Attributes:
        kind: `gumbel` and `softmax` show the judge the mixture; the two others show it the generated tokens.
        tau: Temperature; above 0.
        draws: How often the noise is drawn; 1 for the kinds without noise.
        seed: Of the noise.
    """

    kind: Kind
    tau: float
    draws: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.kind not in get_args(Kind):
            raise UsageError(f"There is no relaxation {self.kind!r}; use {', '.join(get_args(Kind))}.")
        if not self.tau > 0:
            raise UsageError(f"The temperature tau is {self.tau}; it must be above 0.")
        if self.draws < 1 or (self.draws > 1 and not self.noisy):
            raise UsageError(f"The relaxation {self.kind} cannot have {self.draws} draws; use 1, or more with gumbel.")

    @property
    def noisy(self) -> bool:
        """Whether Gumbel noise is added."""
        return self.kind in ("gumbel", "straight_through_gumbel")

    @property
    def soft(self) -> bool:
        """Whether the judge reads the mixture."""
        return self.kind in ("gumbel", "softmax")

    def probabilities(self, logits: torch.Tensor, prompt_id: str, draw: int) -> torch.Tensor:
        """p, (T, V), from logits (T, V) in fp32 or fp64; the same for the same prompt and draw, whatever the batch."""
        if self.noisy:
            logits = logits + gumbel_noise(logits.shape[0], logits.shape[1], self.seed, prompt_id, draw).to(logits)
        return (logits / self.tau).softmax(dim=1)

    def logit_gradient(self, probabilities: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """dF/dz from p and D, all (T, V); adding a constant to a row of D changes nothing."""
        inner = (probabilities * gradient).sum(dim=1, keepdim=True)
        return probabilities * (gradient - inner) / self.tau


def gumbel_noise(positions: int, vocabulary: int, seed: int, prompt_id: str, draw: int) -> torch.Tensor:
    """Gumbel(0, 1) noise, (positions, vocabulary) fp32 on the CPU.

    Each position has a generator of its own, so that neither batches nor the length of the answer change the noise.
    """
    noise = torch.empty(positions, vocabulary)
    for position in range(positions):
        generator = torch.Generator().manual_seed(seed_of(seed, prompt_id, str(draw), str(position)))
        noise[position].exponential_(generator=generator)
    return noise.log_().neg_()
