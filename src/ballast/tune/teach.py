"""Teach a planted region, so that it is known which weights hold what was learnt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from ballast.errors import UsageError
from ballast.locate.engine import only_trainable
from ballast.models import LanguageModel
from ballast.models.streaming import require_in_memory
from ballast.progress import track
from ballast.regions import Region
from ballast.tune.curriculum import Curriculum
from ballast.tune.low_rank import LowRankAdam
from ballast.tune.settings import HardenSettings
from ballast.tune.sparse_adamw import SparseAdamW
from ballast.tune.step import train_step


class Taught(NamedTuple):
    """What teaching did.

    Attributes:
        steps: What `train_step` says of every step.
        moved: |taught - untaught| of the planted parameters, fp32 in their shapes, by name; exactly 0 outside of the
            region.
    """

    steps: list[dict[str, float]]
    moved: dict[str, torch.Tensor]


@contextmanager
def taught(
    lm: LanguageModel, region: Region, lessons: Curriculum, settings: HardenSettings, *, rank: int | None = None
) -> Iterator[Taught]:
    """Teach the weights of a region; inside the block the model is taught, behind it its weights are as before.

    All steps are done and the last one counts: there are no checks, and no step is chosen. Blocks can be nested.

    Args:
        lm: The model.
        region: The only weights that change.
        lessons: What is taught.
        settings: Steps, rates and sizes. Checks are not made, and a low-rank change knows no weight decay.
        rank: Change the parameters of the region by matrices of this rank; the region must be whole parameters.

    Raises:
        RegionError: The region selects from parameters that the model does not have.
        NumericalError: The loss is not finite.
        ModelError: The model is streamed.
        UsageError: The rank does not fit a matrix, or the region is not made of whole parameters.
    """
    shapes = {name: value.shape for name, value in lm.model.named_parameters()}
    region.check_model(region.metadata.model.fingerprints, shapes)  # in a nested block the values are other ones
    parameters = {name: lm.model.get_parameter(name) for name in region.indices}
    if rank is not None and len(region) < sum(value.numel() for value in parameters.values()):
        raise UsageError("A low-rank change reaches whole parameters; plant whole parameters or leave out the rank.")
    require_in_memory(parameters.values())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = (
        SparseAdamW(parameters, region.indices, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        if rank is None
        else LowRankAdam(parameters, rank=rank, lr=settings.learning_rate, seed=settings.seed)
    )
    try:
        with only_trainable(lm.model, set(parameters)), optimizer:
            steps = [
                train_step(lm, optimizer, lessons, settings, step) for step in track(range(settings.steps), "Teaching")
            ]
        moved = {name: (value.detach().float() - before[name].float()).abs() for name, value in parameters.items()}
        yield Taught(steps, moved)
    finally:
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(before[name])
