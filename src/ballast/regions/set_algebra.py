"""Set operations on regions: on the weights of a parameter, and on the units that they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ballast.regions.arrays import Indices
from ballast.regions.metadata import RegionMetadata

Unit = tuple[int, ...]


class Operation(NamedTuple):
    """A set operation.

    Attributes:
        name: For the record.
        on_indices: Ascending unique flat indices of both sides to those of the result.
        on_units: The units of both sides to those of the result.
    """

    name: str
    on_indices: Callable[[Indices, Indices], Indices]
    on_units: Callable[[set[Unit], set[Unit]], set[Unit]]


AND = Operation("and", partial(np.intersect1d, assume_unique=True), set.intersection)
OR = Operation("or", np.union1d, set.union)
MINUS = Operation("minus", partial(np.setdiff1d, assume_unique=True), set.difference)
XOR = Operation("xor", partial(np.setxor1d, assume_unique=True), set.symmetric_difference)
APART = ("neuron", "layer")  # units of these kinds share no weight, so that weights and units combine alike


def combined_units(first: RegionMetadata, second: RegionMetadata, operation: Operation) -> dict[str, Any]:
    """What the record of the result says of units; nothing where its weights are not the same units' weights."""
    if first.granularity not in APART or (first.granularity, first.scored_units) != (
        second.granularity,
        second.scored_units,
    ):
        return {}
    sides = [record.selected_units for record in (first, second)]
    units = {kind: operation.on_units(*(set(side.get(kind, ())) for side in sides)) for kind in first.scored_units}
    return {
        "granularity": first.granularity,
        "units": "units",
        "scored_units": first.scored_units,
        "selected_units": {kind: tuple(sorted(chosen)) for kind, chosen in sorted(units.items()) if chosen},
    }
