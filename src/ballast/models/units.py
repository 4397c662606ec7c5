"""Units of a model: neurons, heads and layers, and which rows and columns of which parameters each of them owns.

A neuron is one output row of the gate, up, query, key or value projection (gate and up together, with their column of
down), or one input column of the output projection. A head is its query rows and its output columns; key and value rows
belong to the query heads that share them together. A layer is a decoder block with all its projections.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from ballast.models.heads import Rows, attention_rows, matrix_shape
from ballast.models.language_model import LanguageModel
from ballast.models.parts import Part

NeuronKind = Literal["feed_forward", "query", "key", "value", "output"]
NEURON_KINDS: tuple[NeuronKind, ...] = get_args(NeuronKind)
KeyValueRule = Literal["all_selected", "any", "never"]


class Lines(NamedTuple):
    """Lines of one weight matrix, the same number for every unit of a group.

    Attributes:
        part: The parameter.
        outputs: Whether the lines are output neurons (rows of W, out x in); else input columns.
        positions: (m, w) int64; the w lines of each of the m units.
    """

    part: Part
    outputs: bool
    positions: torch.Tensor

    @property
    def along_rows(self) -> bool:
        """Whether the lines are rows of the matrix as it is stored."""
        return self.outputs == (self.part.orientation == "out_in")

    def any_of(self, mask: torch.Tensor, expert: int | None) -> torch.Tensor:
        """(m,) which units own an entry where `mask`, in the shape of the parameter, is true."""
        matrix = mask.view(-1, *mask.shape[-2:]).any(dim=0) if expert is None else mask[expert]
        lines = matrix.any(dim=1 if self.along_rows else 0)
        return lines[self.positions].any(dim=1)


class SharedLines(NamedTuple):
    """Lines that several units of a group use together.

    Attributes:
        lines: One set of lines for each of the g sets of users; positions are (g, w).
        users: (m,) int64; which of the sets each unit uses.
        rule: Whether `all_selected` users must be chosen for the lines to be, or `any` of them.
    """

    lines: Lines
    users: torch.Tensor
    rule: Literal["all_selected", "any"]

    def taken(self, chosen: torch.Tensor) -> torch.Tensor:
        """(k,) numbers of the sets that belong to these units."""
        count = len(self.lines.positions)
        present = self.users[chosen].bincount(minlength=count)
        needed = self.users.bincount(minlength=count) if self.rule == "all_selected" else torch.ones_like(present)
        return (present >= needed).nonzero().flatten()


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units of one kind in one layer (and one expert).

    Attributes:
        kind: Such as `feed_forward`, `query` or `head`.
        layer: Decoder block.
        expert: Which expert owns the lines; None for a feed-forward layer without, for attention, and for whole layers,
            which own their lines in every expert.
        shape: Of the units: (inner,), (heads, head size), (heads,) or (1,); they are numbered row by row.
        lines: What they own.
        shared: What several of them own together.
    """

    kind: str
    layer: int
    expert: int | None
    shape: tuple[int, ...]
    lines: tuple[Lines, ...]
    shared: tuple[SharedLines, ...] = ()

    @property
    def size(self) -> int:
        """Number of units."""
        return math.prod(self.shape)

    @property
    def used(self) -> tuple[Lines, ...]:
        """What each unit owns, alone or together with others."""
        together = (Lines(one.part, one.outputs, one.positions[users]) for one, users, _ in self.shared)
        return (*self.lines, *together)

    def entries(self, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        """Flat indices, (k,) int64, not sorted, per parameter of the units with these numbers."""
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        for line in self.lines:  # a fused tensor holds several lines of a unit
            found[line.part.name].append(_flat(line, line.positions[chosen].flatten(), self.expert))
        for shared in self.shared:
            positions = shared.lines.positions[shared.taken(chosen)].flatten()
            found[shared.lines.part.name].append(_flat(shared.lines, positions, self.expert))
        return {name: torch.cat(pieces) for name, pieces in found.items()}


def neuron_groups(lm: LanguageModel, kinds: Sequence[str] = NEURON_KINDS) -> tuple[list[UnitGroup], list[str]]:
    """The neurons of these kinds, and a sentence for each layer and kind that cannot be taken apart."""
    groups: list[UnitGroup] = []
    missing: list[str] = []
    rows = attention_rows(lm)
    for layer, parts in lm.parts.by_layer().items():
        for kind in kinds:
            found = _feed_forward(layer, parts) if kind == "feed_forward" else _attention(layer, kind, rows[layer])
            groups += found
            if not found:
                missing.append(f"layer {layer}: no {kind} neurons can be told apart")
    return groups, missing


def _feed_forward(layer: int, parts: dict[str, Part]) -> list[UnitGroup]:
    groups = []
    for prefix in ("", "shared_experts.", "experts."):
        lines = [line for role in ("gate", "up", "down") if (line := _inner_lines(prefix, role, parts))]
        if not any(line.part.role.endswith("down") for line in lines) or len(lines) < 2:
            continue
        inner = (len(lines[0].positions),)
        count = lines[0].part.shape[0] if lines[0].part.expert_dim is not None else None
        kind = f"{prefix}feed_forward"
        for expert in range(count) if count is not None else (None,):
            groups.append(UnitGroup(kind, layer, expert, inner, tuple(lines)))
    return groups


def _inner_lines(prefix: str, role: str, parts: dict[str, Part]) -> Lines | None:
    """The lines of `gate`, `up` or `down` per inner neuron, out of a tensor of their own or a fused one."""
    if prefix + role in parts:
        part = parts[prefix + role]
        size = matrix_shape(part)[1 if role == "down" else 0]
        return Lines(part, role != "down", torch.arange(size).unsqueeze(1))
    part_or_none = parts.get(f"{prefix}gate_up")
    if part_or_none is None or part_or_none.halves is None or role == "down":
        return None
    half = matrix_shape(part_or_none)[0] // 2
    place = torch.arange(half) if part_or_none.halves == "contiguous" else 2 * torch.arange(half)
    step = half if part_or_none.halves == "contiguous" else 1
    return Lines(part_or_none, True, (place + (step if role == "up" else 0)).unsqueeze(1))


def _attention(layer: int, kind: str, rows: Rows) -> list[UnitGroup]:
    if kind not in rows:
        return []
    part, table = rows[kind]
    shape = (table.shape[0], table.shape[1])
    return [UnitGroup(kind, layer, None, shape, (Lines(part, kind != "output", table.reshape(-1, 1)),))]


def head_groups(lm: LanguageModel, key_value: KeyValueRule = "all_selected") -> tuple[list[UnitGroup], list[str]]:
    """The query heads of each layer with their query rows and output columns, and a sentence for each layer without.

    A fused projection of query, key and value counts like one of their own.

    Args:
        lm: The model.
        key_value: When the key and value rows of a key head belong to a choice of heads: if `all_selected` are the
            query heads that share it (a model without sharing has one), if `any` of them is, or `never`.
    """
    shared = {} if key_value == "never" else {group.layer: group for group in key_value_groups(lm)}
    groups, missing = [], []
    for layer, rows in attention_rows(lm).items():
        if "query" not in rows or "output" not in rows:
            missing.append(f"layer {layer}: no heads can be told apart")
            continue
        lines = tuple(Lines(rows[kind][0], kind == "query", rows[kind][1]) for kind in ("query", "output"))
        heads = len(lines[0].positions)
        together: tuple[SharedLines, ...] = ()
        if key_value != "never" and layer in shared:
            users = torch.arange(heads) // (heads // shared[layer].size)  # as transformers repeats keys and values
            together = tuple(SharedLines(line, users, key_value) for line in shared[layer].lines)
        groups.append(UnitGroup("head", layer, None, (heads,), lines, together))
    return groups, missing


def key_value_groups(lm: LanguageModel) -> list[UnitGroup]:
    """The key and value rows of each layer by the key head they belong to."""
    groups = []
    for layer, rows in attention_rows(lm).items():
        lines = tuple(Lines(rows[kind][0], True, rows[kind][1]) for kind in ("key", "value") if kind in rows)
        if lines:
            groups.append(UnitGroup("key_value", layer, None, (len(lines[0].positions),), lines))
    return groups


def layer_groups(lm: LanguageModel) -> tuple[list[UnitGroup], list[str]]:
    """The decoder blocks with all their projections, one unit and group each, and a sentence for each block without."""
    owned: dict[int, list[Lines]] = defaultdict(list)
    for part in lm.parts.eligible():
        if part.layer is not None:
            owned[part.layer].append(Lines(part, True, torch.arange(matrix_shape(part)[0]).unsqueeze(0)))
    blocks = range(int(lm.model.config.get_text_config().num_hidden_layers))
    groups = [UnitGroup("layer", layer, None, (1,), tuple(owned[layer])) for layer in blocks if layer in owned]
    return groups, [f"layer {layer}: no projection is known" for layer in blocks if layer not in owned]


def _flat(line: Lines, positions: torch.Tensor, expert: int | None) -> torch.Tensor:
    """Flat indices of whole lines, in one expert or in every matrix of the parameter."""
    rows, columns = line.part.shape[-2:]
    if line.along_rows:
        flat = positions.unsqueeze(1) * columns + torch.arange(columns)
    else:
        flat = torch.arange(rows) * columns + positions.unsqueeze(1)
    matrices = torch.arange(line.part.numel // (rows * columns)) if expert is None else torch.tensor([expert])
    return (matrices.unsqueeze(1) * (rows * columns) + flat.flatten()).flatten()
