"""Disturb the weights of a region for a while: Gaussian noise in units of each matrix's own scale."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from ballast.errors import UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import seed_of
from ballast.models.sigma import scale_by_sigma
from ballast.regions.disturbed import disturbed
from ballast.regions.region import Region


def noisy(lm: LanguageModel, region: Region, scale: float = 0.38, seed: int = 0) -> AbstractContextManager[None]:
    """Add `scale * sigma * N(0, 1)` to every weight of a region inside the block (arXiv 2604.08297, verification).

    Sigma is the standard deviation of the weight's matrix, of the undisturbed weights. The noise of a weight depends on
    the seed, its parameter and its place among all weights of the parameter, so two regions disturb a shared weight
    alike. It is added in fp32 and cast to the weight's dtype. The old bits are back after the block.

    Args:
        lm: The model the region was located on.
        region: Which weights.
        scale: In units of sigma; the paper's is 0.38.
        seed: Of the noise.

    Raises:
        UsageError: The scale is not above 0.
        RegionError: The region belongs to another model.
        ModelError: The model is streamed.
    """
    if not scale > 0:
        raise UsageError(f"The scale of the noise is {scale}; it must be above 0.")

    def with_noise(name: str, weight: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed_of(seed, name)))
        scale_by_sigma(lm.parts.by_name(name), weight.cpu(), drawn)
        return weight.take(places).float() + scale * drawn.take(places.cpu()).to(weight.device)

    return disturbed(lm, region, with_noise)
