"""Expected Safety Impact out of gradients of safety (arXiv 2604.08297)."""

from __future__ import annotations

from typing import get_args

import torch

from ballast.errors import UsageError
from ballast.locate.engine import eligible_parameters
from ballast.models import LanguageModel
from ballast.models.sigma import SigmaScope, scale_by_sigma


def check_sigma_scope(scope: str) -> None:
    """Refuse a scope of sigma that is not known.

    Raises:
        UsageError: It is not.
    """
    if scope not in get_args(SigmaScope):
        raise UsageError(f"There is no scope of sigma {scope!r}; use {', '.join(get_args(SigmaScope))}.")


def expected_impact(
    lm: LanguageModel, gradients: dict[str, torch.Tensor], scope: SigmaScope = "matrix"
) -> dict[str, list[float]]:
    """Turn gradients of safety into ESI, |sigma * gradient|, in place.

    Args:
        lm: The model that the gradients are of.
        gradients: fp32, in the shape of each eligible parameter, by parameter name; changed.
        scope: What has one standard deviation, see `matrices`.

    Returns:
        The standard deviations by parameter name, see `scale_by_sigma`.
    """
    return {
        name: scale_by_sigma(lm.parts.by_name(name), parameter, gradients[name].abs_(), scope)
        for name, parameter in eligible_parameters(lm).items()
    }
