"""Where a region's coordinates live: shape, layer, role and axes of every parameter that could have been selected."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from ballast.errors import RegionError
from ballast.regions.arrays import Indices

Orientation = Literal["out_in", "in_out", "none"]


class PartLike(Protocol):
    """What this room needs to know of a parameter; the parts of `ballast.models` fit."""

    @property
    def name(self) -> str:
        """As in `model.named_parameters()`."""

    @property
    def layer(self) -> int | None:
        """Index of the decoder block; None outside of the blocks."""

    @property
    def role(self) -> str:
        """Such as `query` or `down`."""

    @property
    def shape(self) -> Sequence[int]:
        """As stored."""

    @property
    def orientation(self) -> Orientation:
        """Whether rows (`out_in`) or columns (`in_out`) of the last two axes are output neurons."""

    @property
    def expert_dim(self) -> int | None:
        """The axis that counts experts, for experts stored as one tensor."""


class TensorLayout(BaseModel):
    """One parameter's shape and meaning.

    Attributes:
        shape: As stored; flat indices count its entries in C order.
        layer: Index of the decoder block; None outside of the blocks.
        role: Such as `query` or `down`.
        orientation: Which of the last two axes counts output neurons, see `PartLike`.
        expert_dim: The axis that counts experts; a slice along it is a weight matrix of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[PositiveInt, ...] = Field(min_length=1)
    layer: int | None = Field(ge=0)
    role: str
    orientation: Orientation
    expert_dim: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _expert_axis_exists(self) -> Self:
        if self.expert_dim is not None and self.expert_dim >= len(self.shape):
            raise ValueError(f"expert_dim {self.expert_dim} is not an axis of {self.shape}")
        return self

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def matrices(self) -> int:
        """Number of weight matrices: one per expert, else one."""
        return 1 if self.expert_dim is None else self.shape[self.expert_dim]

    def matrix_of(self, indices: Indices) -> Indices:
        """Which matrix (expert, or 0) each flat index is in; (k,) to (k,)."""
        return indices // self._stride % self.matrices

    def place(self, matrix: int, local: Indices) -> Indices:
        """Flat index in the parameter of positions counted within one matrix, in the same order; (k,) to (k,)."""
        wide = local.astype(np.int64)
        stride = self._stride
        return wide // stride * (stride * self.matrices) + matrix * stride + wide % stride

    @property
    def _stride(self) -> int:
        """Entries between one expert and the next; the whole parameter if it is one matrix."""
        return math.prod(self.shape) if self.expert_dim is None else math.prod(self.shape[self.expert_dim + 1 :])


Layout = dict[str, TensorLayout]


def layout_of(parts: Iterable[PartLike], names: Iterable[str]) -> Layout:
    """The layout of the parameters `names`, in code-point order of their names.

    Raises:
        RegionError: A name is not among the parts.
    """
    by_name = {part.name: part for part in parts}
    layout = {}
    for name in sorted(names):
        if name not in by_name:
            raise RegionError(
                f"{name} has scores but is no parameter of the model; locate on the model that is opened."
            )
        part = by_name[name]
        layout[name] = TensorLayout(
            shape=tuple(part.shape),
            layer=part.layer,
            role=part.role,
            orientation=part.orientation,
            expert_dim=part.expert_dim,
        )
    return layout


def cells_of(indices: Mapping[str, Sized], layout: Layout) -> list[dict[str, Any]]:
    """Rows `layer`, `role`, `selected`, `size`: weights selected and weights there, in order of layer and role.

    Args:
        indices: Flat indices (k,) by parameter name; each parameter is read once.
        layout: Every parameter that could have been selected.
    """
    sizes: dict[tuple[int | None, str], list[int]] = defaultdict(lambda: [0, 0])
    for name, tensor in layout.items():
        cell = sizes[tensor.layer, tensor.role]
        cell[0] += len(indices.get(name, ()))
        cell[1] += tensor.numel
    ordered = sorted(sizes, key=lambda cell: (cell[0] is None, cell[0] or 0, cell[1]))
    return [
        {"layer": layer, "role": role, "selected": sizes[layer, role][0], "size": sizes[layer, role][1]}
        for layer, role in ordered
    ]
