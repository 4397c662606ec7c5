"""Units that weights make up: decoder blocks, weight matrices, and the neurons of feed-forward networks.

A neuron of a feed-forward network is one entry of its inner vector. Its weights are what computes that entry (a row of
gate and of up, or of both in one fused matrix) and what reads it (a column of down); where layers are stored the other
way round, rows are columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ballast.errors import RegionError
from ballast.regions.arrays import Counts, Indices
from ballast.regions.layout import PartLike

Level = Literal["layer", "matrix", "neuron"]
FEED_FORWARD = ("gate", "up", "gate_up", "down")


class UnitPart(PartLike, Protocol):
    """What must be known of a parameter to tell its neurons; the parts of `ballast.models` fit."""

    @property
    def halves(self) -> Literal["contiguous", "interleaved"] | None:
        """How a fused gate and up orders its output neurons; None if it is not fused, or not known."""


@dataclass(frozen=True, eq=False)
class Units:
    """Every unit of one level, numbered from 0.

    Attributes:
        numbers: By parameter name, the unit of each entry, in a shape that broadcasts to that of the parameter.
            Parameters that belong to no unit of this level, such as attention to no neuron, are left out.
        shapes: The shapes of these parameters.
        count: How many units there are.
    """

    numbers: dict[str, NDArray[np.int64]]
    shapes: dict[str, tuple[int, ...]]
    count: int

    def sizes(self) -> Counts:
        """Weights of each unit, (units,)."""
        sizes = np.zeros(self.count, np.int64)
        for name, numbers in self.numbers.items():
            np.add.at(sizes, numbers.reshape(-1), math.prod(self.shapes[name]) // numbers.size)
        return sizes

    def counted(self, indices: Mapping[str, torch.Tensor]) -> Counts:
        """How many of the given weights are in each unit; flat C-order indices (k,) per name to (units,)."""
        counts = np.zeros(self.count, np.int64)
        for name in indices.keys() & self.numbers.keys():
            whole = np.broadcast_to(self.numbers[name], self.shapes[name])
            inside = whole[np.unravel_index(indices[name].numpy(), self.shapes[name])]
            counts += np.bincount(inside, minlength=self.count)
        return counts

    def weights_of(self, chosen: Indices) -> dict[str, Indices]:
        """All weights of the chosen units: ascending flat C-order indices (k,) per parameter that has any."""
        found = {}
        for name, numbers in self.numbers.items():
            places = np.flatnonzero(np.broadcast_to(np.isin(numbers, chosen), self.shapes[name]))
            if places.size:
                found[name] = places
        return found


def units_of(parts: Iterable[UnitPart], level: Level) -> Units:
    """Number the units of some parameters.

    Args:
        parts: The parameters, such as `lm.parts.eligible()`.
        level: `layer`; `matrix`, one per expert for experts in one tensor; or `neuron` of a feed-forward network.

    Raises:
        RegionError: No parameter belongs to a unit, or a model does not say how its fused gate and up are ordered.
    """
    known: dict[object, int] = {}  # the first number of each layer, matrix or feed-forward network
    numbers: dict[str, NDArray[np.int64]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    count = 0
    for part in parts:
        within = _within(part, level)
        if within is None:
            continue
        owner = {"layer": part.layer, "matrix": part.name, "neuron": _network(part.name)}[level]
        if owner not in known:
            known[owner] = count
            count += int(within.max()) + 1
        numbers[part.name] = within + known[owner]
        shapes[part.name] = tuple(part.shape)
    if not count:
        raise RegionError(f"No parameter belongs to a {level}; choose another kind of unit for this model.")
    return Units(numbers, shapes, count)


def _within(part: UnitPart, level: Level) -> NDArray[np.int64] | None:
    """The unit of each entry, counted within its layer, parameter or network; None if it belongs to none."""
    if level == "layer":
        return np.zeros([1] * len(part.shape), np.int64)
    expert = np.zeros([1] * len(part.shape), np.int64)
    if part.expert_dim is not None:
        expert = _along(part.expert_dim, np.arange(part.shape[part.expert_dim]), part)
    if level == "matrix":
        return expert
    role = part.role.rpartition(".")[2]
    if role not in FEED_FORWARD:
        return None
    reads_inner = role == "down"
    axis = -2 if (part.orientation == "out_in") != reads_inner else -1
    positions = np.arange(part.shape[axis])
    width = len(positions)
    if role == "gate_up":
        if part.halves is None:
            raise RegionError(f"The model does not say how {part.name} orders gate and up; choose layers or matrices.")
        width //= 2
        positions = positions % width if part.halves == "contiguous" else positions // 2
    return expert * width + _along(len(part.shape) + axis, positions, part)


def _along(axis: int, values: NDArray[np.int64], part: UnitPart) -> NDArray[np.int64]:
    """Values (k,) in a shape that broadcasts along one axis of a parameter."""
    return values.reshape([-1 if other == axis else 1 for other in range(len(part.shape))])


def _network(name: str) -> str:
    """The module that holds the matrices of one feed-forward network (for experts in one tensor, of all of them)."""
    return name.removesuffix(".weight").rpartition(".")[0]
