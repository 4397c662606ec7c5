"""The checkpoint that an aligned model started from, and what alignment changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from ballast.errors import ModelError
from ballast.locate.engine import eligible_parameters
from ballast.models import LanguageModel, open_model


def open_base(
    lm: LanguageModel, source: str, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> LanguageModel:
    """Open the other checkpoint, in main memory if nothing else is said.

    Args:
        lm: The aligned model.
        source: As for `open_model`; pickled weights and code of the checkpoint are refused.
        dtype: As for `open_model`.
        device: As for `open_model`.

    Raises:
        ModelError: It cannot be opened, or its weight matrices are not those of `lm` by name and shape.
    """
    base = open_model(source, dtype=dtype, device=device)
    ours, theirs = ({part.name: part.shape for part in one.parts.eligible()} for one in (lm, base))
    for name in sorted(ours.keys() ^ theirs.keys()):
        owner = lm.name if name in ours else base.name
        raise ModelError(f"Only {owner} has {name}; give as base the checkpoint that {lm.name} was made from.")
    for name, shape in ours.items():
        if shape != theirs[name]:
            raise ModelError(
                f"{name} is {shape} in {lm.name} and {theirs[name]} in {base.name}; "
                f"give as base the checkpoint that {lm.name} was made from."
            )
    return base


def difference(lm: LanguageModel, base: LanguageModel) -> dict[str, torch.Tensor]:
    """Aligned minus base, fp32, for every eligible weight matrix by parameter name; on the devices of `lm`."""
    before = eligible_parameters(base)
    return {
        name: after.detach().float() - before[name].detach().to(after.device).float()
        for name, after in eligible_parameters(lm).items()
    }


def unchanged(lm: LanguageModel, updates: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many parameters of each role an update leaves as they are.

    Raises:
        ModelError: It leaves all of them.
    """
    same = [name for name, update in updates.items() if not update.any()]
    if len(same) == len(updates):
        raise ModelError(f"No weight of {lm.name} differs from what it is compared with; give another base or adapter.")
    return dict(Counter(lm.parts.by_name(name).role for name in same))
