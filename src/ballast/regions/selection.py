"""Which weights are selected: the largest scores, exactly, over all weights or within each layer, tensor or row.

Ties at the cut go to the first in order of (tensor name by code point, flat C-order index).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from ballast.errors import RegionError, UsageError
from ballast.regions.arrays import Indices, index_type
from ballast.regions.formed import Formed
from ballast.regions.layout import Layout, PartLike, TensorLayout, layout_of
from ballast.regions.rows import top_of_rows
from ballast.regions.threshold import Direction, Threshold, chunks_of, exact_threshold
from ballast.shards import first_entry, joined, mesh_of, whole

Scope = Literal["global", "per_layer", "per_tensor", "per_row"]
DEFAULT_FRACTION = Fraction(1, 100)


class SelectionRecord(BaseModel):
    """How a selection was made, as the Region file keeps it; numbers count weights, or units where those are selected.

    Attributes:
        scope: What is ranked together: all weights, a layer, a weight matrix (one per expert), an output neuron; for
            units also all of a kind; `own` if the method itself chose them.
        direction: `top` takes the largest scores, `bottom` the smallest.
        fraction: The fraction asked for, as an exact ratio such as `1/100`; None if a number was asked for.
        requested: Number of weights asked for, floor(fraction * eligible).
        actual: Number of weights selected. Below `requested` if shares of single units were rounded down or fell short.
        eligible: Number of weights that had scores.
        thresholds: The lowest selected score (highest for `bottom`) per unit; empty for `per_row`.
        ties_taken: Selected weights whose score equals the threshold of their unit, summed over units.
        ties_left: Weights with such a score that were not selected.
        short_units: Units in which fewer weights than their share have a score above zero; zeros are not selected.
        layers: The decoder blocks that could be selected from; None for all eligible weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: Scope | Literal["per_kind", "own"]
    direction: Direction
    fraction: str | None
    requested: int
    actual: int
    eligible: int
    thresholds: dict[str, float]
    ties_taken: int
    ties_left: int
    short_units: int = 0
    layers: tuple[int, ...] | None = None


class Selection(NamedTuple):
    """Selected weights and how they were found.

    Attributes:
        indices: Ascending flat C-order indices per parameter, (k,) int32, int64 from 2**31 entries on; never empty.
        layout: All parameters that had scores.
        record: Scope, sizes, thresholds and ties.
    """

    indices: dict[str, torch.Tensor]
    layout: Layout
    record: SelectionRecord


def exact_fraction(fraction: Fraction | float | str) -> Fraction:
    """The number as written in decimal: 0.01 is 1/100, not the nearest binary number.

    Raises:
        UsageError: It is not a number in (0, 1].
    """
    try:
        exact = fraction if isinstance(fraction, Fraction) else Fraction(str(fraction))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"The fraction {fraction!r} is not a number; give one above 0 and at most 1.") from error
    if not 0 < exact <= 1:
        raise UsageError(f"The fraction {fraction} is outside of (0, 1]; 0.01 selects one weight in a hundred.")
    return exact


def select_top(
    scores: Mapping[str, torch.Tensor],
    fraction: Fraction | float | str | None = None,
    *,
    count: int | None = None,
    scope: Scope = "global",
    parts: Iterable[PartLike],
    direction: Direction = "top",
    layers: Collection[int] | None = None,
) -> Selection:
    """Select the weights with the largest (or smallest) scores.

    Args:
        scores: fp32 tensors in the shapes of their parameters, non-negative and finite. Read one at a time, at most
            three times, so a mapping that forms its values when asked works.
        fraction: Share of each unit of the scope to select, in (0, 1]; floor(fraction * n) of n weights, exactly.
        count: Number of weights instead of a fraction; scope `global` only.
        scope: What is ranked together, see `SelectionRecord`.
        parts: The model's parts; they tell layers, experts and which axis of a weight counts output neurons.
        direction: `top`, or `bottom` for the control that takes the least important weights.
        layers: Decoder blocks to select from, counted from 0; None for all. With scope `global` the number of weights
            stays the fraction of all that have scores.

    Raises:
        UsageError: The fraction is outside of (0, 1], or the arguments do not fit each other.
        RegionError: Nothing would be selected, or for scope `global` fewer scores than needed are above zero.
        NumericalError: A score is NaN, infinite or negative.
    """
    if scope not in get_args(Scope) or direction not in get_args(Direction):
        raise UsageError(
            f"Scope {scope!r}, direction {direction!r}: choose from {get_args(Scope) + get_args(Direction)}."
        )
    if (fraction is None) == (count is None) or (count is not None and scope != "global"):
        raise UsageError("Give either a fraction or, with scope global, a count.")
    layout = layout_of(parts, scores)
    if not layout:
        raise RegionError(
            "No parameter has scores, so nothing can be selected; check that the model has eligible weights."
        )
    exact = None if fraction is None else exact_fraction(fraction)
    eligible = sum(tensor.numel for tensor in layout.values())
    requested = math.floor(exact * eligible) if exact is not None else count or 0

    found = _Found(direction)
    open_to = _within(layout, layers)
    if scope == "global":
        given = scores if layers is None else Formed(open_to, scores.__getitem__)
        found.take("all", given, list(open_to), requested, strict=True)
    elif exact is not None and scope == "per_row":
        for name, tensor_layout in open_to.items():
            found.take_rows(name, whole(scores[name]), tensor_layout, exact)
    elif exact is not None:
        for label, unit, expert in _units(scores, open_to, scope):
            matrices = 1 if expert is None else expert[0].matrices
            size = sum(open_to[name].numel for name in unit) // matrices
            found.take(label, unit, list(unit), math.floor(exact * size), expert=expert)

    indices = {name: torch.from_numpy(np.sort(np.concatenate(found.pieces[name]))) for name in sorted(found.pieces)}
    actual = sum(map(len, indices.values()))
    if actual == 0:
        raise RegionError(
            f"No weight would be selected with scope {scope}: the share of every unit rounds down to zero or its "
            "scores are all zero; ask for a larger fraction or a wider scope."
        )
    record = SelectionRecord(
        scope=scope,
        direction=direction,
        fraction=None if exact is None else str(exact),
        requested=requested,
        actual=actual,
        eligible=eligible,
        thresholds=found.thresholds,
        ties_taken=found.ties_taken,
        ties_left=found.ties_left,
        short_units=found.short_units,
        layers=None if layers is None else tuple(sorted(layers)),
    )
    return Selection(indices, layout, record)


def indices_beyond(
    scores: Mapping[str, torch.Tensor], names: Iterable[str], cut: Threshold, direction: Direction = "top"
) -> Iterator[tuple[str, Indices]]:
    """Yield what a threshold selects of each tensor that has any: its name and ascending flat indices.

    Args:
        scores: As given to `exact_threshold`.
        names: The order in which tensors get the ties that are taken.
        cut: The threshold of these scores.
        direction: As given to `exact_threshold`.
    """
    quota = cut.ties_taken
    for name in names:
        tensor = scores[name]
        beyond, tied = (joined(own, mesh_of(tensor)) for own in _own_beyond(name, tensor, cut, direction, quota))
        tied = tied[:quota]
        quota -= len(tied)
        selected = np.sort(np.concatenate([beyond, tied])) if tied.size else beyond
        if selected.size:
            yield name, selected.astype(index_type(tensor.numel()), copy=False)


def _own_beyond(
    name: str, scores: torch.Tensor, cut: Threshold, direction: Direction, quota: int
) -> tuple[Indices, Indices]:
    """Flat indices of what lies beyond the cut, and of the first `quota` on it; in the part that this process holds."""
    beyond: list[Indices] = []
    tied: list[Indices] = []
    start = first_entry(scores)
    for bits in chunks_of(name, scores):
        beyond.append(np.flatnonzero(bits > cut.bits if direction == "top" else bits < cut.bits) + start)
        if quota:
            tied.append(np.flatnonzero(bits == cut.bits)[:quota] + start)
            quota -= len(tied[-1])
        start += len(bits)
    nothing = np.zeros(0, np.int64)
    return np.concatenate([nothing, *beyond]), np.concatenate([nothing, *tied])


def _within(layout: Layout, layers: Collection[int] | None) -> Layout:
    """The part of a layout that lies in given decoder blocks."""
    if layers is None:
        return layout
    known = {tensor.layer for tensor in layout.values() if tensor.layer is not None}
    if not layers or not known.issuperset(layers):
        raise UsageError(f"Layers {sorted(layers)} were asked for; choose one or more of {min(known)} to {max(known)}.")
    return {name: tensor for name, tensor in layout.items() if tensor.layer in layers}


_Expert = tuple[TensorLayout, int] | None  # the one matrix of a stack of experts that a unit consists of


def _units(
    scores: Mapping[str, torch.Tensor], layout: Layout, scope: Scope
) -> Iterator[tuple[str, Mapping[str, torch.Tensor], _Expert]]:
    """Split the scores into the units that are ranked apart: (label, scores of the unit, expert)."""
    if scope == "per_layer":
        layers: dict[int | None, list[str]] = defaultdict(list)
        for name, tensor in layout.items():
            layers[tensor.layer].append(name)
        for layer in sorted(layers, key=lambda layer: math.inf if layer is None else layer):
            label = "outside of the layers" if layer is None else f"layer {layer}"
            yield label, Formed(layers[layer], scores.__getitem__), None
        return
    for name, tensor in layout.items():
        values = whole(scores[name])
        if tensor.expert_dim is None:
            yield name, {name: values}, None
        else:
            for expert, matrix in enumerate(values.unbind(tensor.expert_dim)):
                yield f"{name}[{expert}]", {name: matrix}, (tensor, expert)


@dataclass
class _Found:
    """What has been selected so far."""

    direction: Direction
    pieces: dict[str, list[Indices]] = field(default_factory=lambda: defaultdict(list))
    thresholds: dict[str, float] = field(default_factory=dict)
    ties_taken: int = 0
    ties_left: int = 0
    short_units: int = 0

    def take(
        self,
        label: str,
        unit: Mapping[str, torch.Tensor],
        names: Iterable[str],
        k: int,
        *,
        expert: _Expert = None,
        strict: bool = False,
    ) -> None:
        """Select k weights of one unit; a unit whose share is 0 gives none, and unless `strict`, zeros are left out."""
        if k == 0 and not strict:
            return
        cut = exact_threshold(unit, k, self.direction, zero_allowed=not strict)
        if cut.value == 0 and self.direction == "top":
            cut = cut._replace(ties_taken=0, ties_total=0)
            self.short_units += 1
        self.thresholds[label] = cut.value
        self.ties_taken += cut.ties_taken
        self.ties_left += cut.ties_total - cut.ties_taken
        for name, indices in indices_beyond(unit, names, cut, self.direction):
            if expert is None:
                self.pieces[name].append(indices)
            else:
                layout, number = expert
                self.pieces[name].append(layout.place(number, indices).astype(index_type(layout.numel)))

    def take_rows(self, name: str, scores: torch.Tensor, layout: TensorLayout, fraction: Fraction) -> None:
        """Select the share of every output neuron of one parameter."""
        found = top_of_rows(name, scores, layout, fraction, self.direction)
        self.ties_taken += found.ties_taken
        self.ties_left += found.ties_left
        self.short_units += found.short_rows
        if found.indices.size:
            self.pieces[name].append(found.indices)
