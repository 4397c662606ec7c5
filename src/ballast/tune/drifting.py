"""Protection by budget: of the weights that matter, those that training would move the most."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch

from ballast.errors import UsageError
from ballast.locate.scores import WeightScores
from ballast.models import LanguageModel
from ballast.regions import Region, exact_fraction, select_top


def drifting(found: WeightScores | Region, before: LanguageModel, after: LanguageModel, budget: float) -> Region:
    """The weights with the largest score times |after - before|; in a region every score is 1.

    Args:
        found: Scores of a method, or a region.
        before: The model that was located in.
        after: The same after a short training that nothing was protected in.
        budget: Share to take, in (0, 1]: of all weights that were scored, or of the region.

    Raises:
        UsageError: The budget is outside of (0, 1].
        RegionError: Nothing would be left, or fewer weights than the budget both matter and moved.
    """
    if isinstance(found, WeightScores):
        moved = _moved(found.values, before, after)
        values = {name: found.values[name] * moved[name] for name in found.values}
        return dataclasses.replace(found, values=values, settings=found.settings | {"drifting": True}).select(budget)
    moved = _moved(found.indices, before, after)
    for name, index in found.indices.items():
        inside = torch.zeros(moved[name].numel())
        inside[index.long()] = 1
        moved[name] *= inside.view_as(moved[name])
    count = math.floor(exact_fraction(budget) * len(found))
    if not count:
        raise UsageError(f"A budget of {budget} of {len(found):,} weights is none; give a larger one.")
    kept = select_top(moved, count=count, parts=before.parts)
    derived = {
        "settings": found.metadata.settings | {"drifting": budget},
        "parents": (found.region_id,),
        "selection": None,
        "granularity": "weight",
        "units": "entries",
        "selected_units": {},
        "scored_units": {},
    }
    return Region(kept.indices, found.metadata.model_copy(update=derived))


def _moved(names: Iterable[str], before: LanguageModel, after: LanguageModel) -> dict[str, torch.Tensor]:
    """|after - before| of parameters, fp32 on the CPU."""
    return {
        name: (after.weight(name).float() - before.weight(name).to(after.device).float()).abs().cpu() for name in names
    }
