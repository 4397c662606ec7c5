"""Expected Safety Impact out of gradients of safety (arXiv 2604.08297)."""

from __future__ import annotations

import torch

from ballast.locate.engine import eligible_parameters
from ballast.models import LanguageModel
from ballast.models.sigma import scale_by_sigma


def expected_impact(lm: LanguageModel, gradients: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Turn gradients of safety into ESI, |sigma * gradient|, in place.

    Args:
        lm: The model that the gradients are of.
        gradients: fp32, in the shape of each eligible parameter, by parameter name; changed.

    Returns:
        The standard deviations by parameter name, see `scale_by_sigma`.
    """
    return {
        name: scale_by_sigma(lm.parts.by_name(name), parameter, gradients[name].abs_())
        for name, parameter in eligible_parameters(lm).items()
    }
