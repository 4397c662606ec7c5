"""Scores that follow from a weight matrix and little else, also for models whose weights are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ballast.models import LanguageModel
from ballast.models.parts import Part
from ballast.regions.formed import Formed


def scores_by_part(lm: LanguageModel, score: Callable[[Part], torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The score of every eligible weight, by parameter name.

    The fp32 scores of a model are larger than the model, so those of a streamed one are formed whenever they are asked
    for. Else they are held, and a later change of the weights does not change them.

    Args:
        lm: The model.
        score: Scores one parameter, fp32 in its shape; `lm.weight` gives its values. It must not depend on the order of
            the calls.
    """
    parts = {part.name: part for part in lm.parts.eligible()}
    formed = Formed(parts, lambda name: score(parts[name]))
    return formed if lm.stored else dict(formed)
