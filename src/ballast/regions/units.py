"""Units that weights make up: decoder blocks, weight matrices, and the neurons of feed-forward networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ballast.errors import RegionError
from ballast.models import LanguageModel
from ballast.models.units import UnitGroup, neuron_groups
from ballast.regions.arrays import Counts
from ballast.regions.layout import Layout, layout_of

UnitKind = Literal["layer", "matrix", "neuron"]


@dataclass(frozen=True, eq=False)
class Units:
    """Every unit of one kind, numbered from 0.

    Attributes:
        kind: What a unit is.
        count: How many there are.
        numbers: By parameter name, the unit of each entry, in a shape that broadcasts to that of the parameter.
            Parameters that belong to no unit of this kind, such as attention to no neuron, are left out.
        shapes: The shapes of these parameters.
    """

    kind: UnitKind
    count: int
    numbers: Mapping[str, NDArray[np.int64]]
    shapes: Mapping[str, tuple[int, ...]]

    def sizes(self) -> Counts:
        """Weights of each unit, (units,)."""
        sizes = np.zeros(self.count, np.int64)
        for name, numbers in self.numbers.items():
            per_number = np.broadcast_to(numbers, self.shapes[name]).size // numbers.size
            sizes += per_number * np.bincount(numbers.reshape(-1), minlength=self.count)
        return sizes

    def counted(self, indices: Mapping[str, torch.Tensor]) -> Counts:
        """How many of the given weights are in each unit; flat C-order indices (k,) per name to (units,)."""
        counts = np.zeros(self.count, np.int64)
        for name in indices.keys() & self.numbers.keys():
            places = np.unravel_index(indices[name].numpy(), self.shapes[name])
            inside = np.broadcast_to(self.numbers[name], self.shapes[name])[places]
            counts += np.bincount(inside, minlength=self.count)
        return counts


def units_of(lm: LanguageModel, kind: UnitKind) -> Units:
    """The units of this kind that a model's eligible weights make up.

    Raises:
        RegionError: The neurons of a layer cannot be told apart.
    """
    if kind == "neuron":
        return neuron_units(lm)
    layout = layout_of(lm.parts, [part.name for part in lm.parts.eligible()])
    return layer_units(layout) if kind == "layer" else matrix_units(layout)


def layer_units(layout: Layout) -> Units:
    """Decoder blocks; what lies outside of them is one unit more."""
    known: dict[int | None, int] = {}
    numbers = {
        name: np.full([1] * len(tensor.shape), known.setdefault(tensor.layer, len(known)))
        for name, tensor in layout.items()
    }
    return Units("layer", len(known), numbers, _shapes(layout))


def matrix_units(layout: Layout) -> Units:
    """Weight matrices, one for each expert of experts in one tensor."""
    numbers, count = {}, 0
    for name, tensor in layout.items():
        along_experts = [-1 if axis == tensor.expert_dim else 1 for axis in range(len(tensor.shape))]
        numbers[name] = np.arange(count, count + tensor.matrices).reshape(along_experts)
        count += tensor.matrices
    return Units("matrix", count, numbers, _shapes(layout))


def neuron_units(lm: LanguageModel) -> Units:
    """Neurons of the feed-forward networks, in all layers and experts.

    Raises:
        RegionError: The neurons of a layer cannot be told apart.
    """
    groups, missing = neuron_groups(lm, ("feed_forward",))
    if missing:
        raise RegionError(f"{missing[0]}; compare layers or matrices of this model.")
    numbers: dict[str, NDArray[np.int64]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    count = 0
    for group in groups:
        own = np.arange(count, count + group.size)[:, None]  # (m, 1)
        count += group.size
        for part, along_rows, positions in ((line.part, line.along_rows, line.positions) for line in group.lines):
            rows, columns = part.shape[-2:]
            matrix = (rows, 1) if along_rows else (1, columns)
            table = numbers.setdefault(part.name, np.zeros((*part.shape[:-2], *matrix), np.int64))
            shapes[part.name] = part.shape
            one = table if group.expert is None else table[group.expert]
            one.reshape(-1)[positions.numpy()] = own
    return Units("neuron", count, numbers, shapes)


def touched(group: UnitGroup, indices: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(m,) which units of a group own any of the given weights, alone or together with others.

    Args:
        group: Neurons, heads or layers.
        indices: Flat C-order indices (k,) by parameter name, such as `region.indices`.
    """
    found = torch.zeros(group.size, dtype=torch.bool)
    for line in group.used:
        if line.part.name in indices:
            mask = torch.zeros(line.part.numel, dtype=torch.bool)
            mask[indices[line.part.name].long()] = True
            found |= line.any_of(mask.view(line.part.shape), group.expert)
    return found


def _shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in layout.items()}
