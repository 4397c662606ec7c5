"""Other values in the weights of a region for a while: zeros, a multiple, or those of another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ballast.errors import ModelError, RegionError, UsageError
from ballast.models import LanguageModel
from ballast.models.streaming import require_in_memory
from ballast.regions.region import Region
from ballast.shards import mesh_of

# name, the parameter, flat places of the region in it (k,) int64 -> the new values (k,), any float dtype and device
NewValues = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


@contextmanager
@torch.no_grad()
def disturbed(lm: LanguageModel, region: Region, new_values: NewValues) -> Iterator[None]:
    """Give the weights of a region other values inside the block; the old bits are back after it, whatever happened.

    Args:
        lm: The model the region was located on.
        region: Which weights.
        new_values: Called once per parameter with weights in the region, before that parameter is changed; what it
            returns is cast to the dtype of the weights.

    Raises:
        RegionError: The region belongs to another model.
        ModelError: The model is streamed, or spread over processes.
    """
    require_in_memory(lm.model.parameters())
    parameters = dict(lm.model.named_parameters())
    if any(mesh_of(weight) is not None for weight in parameters.values()):
        raise ModelError("The model is spread over processes and can only be disturbed in one; open it in one process.")
    region.check_model(lm.fingerprints(), {name: value.shape for name, value in parameters.items()})
    before: dict[str, torch.Tensor] = {}
    try:
        for name, indices in region.indices.items():
            weight = parameters[name]
            places = indices.long().to(weight.device)
            values = new_values(name, weight, places).to(weight)
            before[name] = weight.take(places)
            weight.put_(places, values)
        yield
    finally:
        for name, values in before.items():
            parameters[name].put_(region.indices[name].long().to(values.device), values)


def ablated(lm: LanguageModel, region: Region) -> AbstractContextManager[None]:
    """Every weight of a region is 0 inside the block; see `disturbed` for the errors."""
    return disturbed(lm, region, lambda _, weight, places: torch.zeros_like(weight.take(places)))


def scaled(lm: LanguageModel, region: Region, factor: float) -> AbstractContextManager[None]:
    """Every weight of a region is `factor` times as large inside the block; multiplied in fp32.

    Raises:
        UsageError: The factor is negative or 1.
        BallastError: As for `disturbed`.
    """
    if not factor >= 0 or factor == 1:
        raise UsageError(f"The factor is {factor}; give one of at least 0 other than 1, which would change nothing.")
    return disturbed(lm, region, lambda _, weight, places: factor * weight.take(places).float())


def transplanted(lm: LanguageModel, region: Region, donor: LanguageModel) -> AbstractContextManager[None]:
    """Every weight of a region has the value of another model inside the block.

    Args:
        lm: The model that is changed for a while.
        region: Which weights; it belongs to `lm` (see `carried`).
        donor: A model of the same architecture, such as the base of an aligned model; it may be streamed.

    Raises:
        RegionError: The donor has no such parameter, or of another shape.
        BallastError: As for `disturbed`.
    """
    check_donor(region, donor)
    return disturbed(lm, region, lambda name, _, places: _of(donor, name, places))


def check_donor(region: Region, donor: LanguageModel) -> None:
    """Make sure that a model has all weights of a region.

    Raises:
        RegionError: A parameter is missing or has another shape.
    """
    shapes = {name: tuple(value.shape) for name, value in donor.model.named_parameters()}
    for name in region.indices:
        if shapes.get(name) != region.layout[name].shape:
            raise RegionError(
                f"{donor.name} has no {name} of shape {region.layout[name].shape}; weights can be transplanted between "
                "models of the same architecture only."
            )


def differing(lm: LanguageModel, region: Region, donor: LanguageModel) -> int:
    """How many weights of a region a transplant would change; the values are compared in the dtype of `lm`.

    Raises:
        RegionError: As for `transplanted`.
    """
    check_donor(region, donor)
    count = 0
    for name, indices in region.indices.items():
        weight = lm.weight(name)
        places = indices.long().to(weight.device)
        count += int((_of(donor, name, places).to(weight) != weight.take(places)).sum())
    return count


def _of(donor: LanguageModel, name: str, places: torch.Tensor) -> torch.Tensor:
    weight = donor.weight(name)
    return weight.take(places.to(weight.device))
