"""Scores of neurons, heads or layers, and how regions are cut from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from ballast.errors import RegionError, UsageError
from ballast.locate.scores import Scores
from ballast.models.units import UnitGroup
from ballast.regions import Region
from ballast.regions.arrays import index_type
from ballast.regions.layout import layout_of
from ballast.regions.metadata import Granularity
from ballast.regions.selection import Scope
from ballast.regions.threshold import Direction
from ballast.regions.unit_selection import UnitScope, select_units
from ballast.regions.units import touched


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitScores(Scores):
    """Scores of units.

    Attributes:
        granularity: What a unit is.
        groups: The units that were scored.
        values: (m,) fp32 scores of each group, non-negative.
        chosen: Numbers of the units that the method itself chose, per group; None if it leaves that to `select`.
    """

    granularity: Granularity
    groups: tuple[UnitGroup, ...]
    values: tuple[torch.Tensor, ...]
    chosen: tuple[torch.Tensor, ...] | None = None

    def select(
        self,
        fraction: Fraction | float | str | None = None,
        *,
        scope: Scope | UnitScope | None = None,
        direction: Direction = "top",
        layers: Collection[int] | None = None,
        outside: Region | None = None,
    ) -> Region:
        """As `Scores.select`."""
        if scope in ("per_tensor", "per_row"):
            raise UsageError(f"Units are not ranked {scope}; use the scope per_kind, per_layer or global.")
        if outside is not None and direction == "bottom":
            raise UsageError("The lowest scores outside of a region cannot be selected; use direction top.")
        known = {group.layer for group in self.groups}
        if strangers := set(layers or ()) - known:
            raise UsageError(
                f"There is no layer {min(strangers)} with scores; choose from {min(known)} to {max(known)}."
            )
        within = [group.layer in layers if layers is not None else True for group in self.groups]
        barred = {} if outside is None else outside.indices
        allowed = [~touched(group, barred) & inside for group, inside in zip(self.groups, within, strict=True)]
        chosen, record = select_units(
            self.groups,
            self.values,
            allowed,
            own=self.chosen,
            fraction=fraction,
            scope=scope if scope in ("global", "per_layer") else "per_kind",
            direction=direction,
            layers=layers,
        )
        pieces: dict[str, list[torch.Tensor]] = {}
        for group, units in zip(self.groups, chosen, strict=True):
            for name, entries in group.entries(units).items():
                pieces.setdefault(name, []).append(entries)
        layout = layout_of(self.lm.parts, {line.part.name for group in self.groups for line in group.used})
        indices = {
            name: torch.from_numpy(np.unique(torch.cat(found).numpy()).astype(index_type(layout[name].numel)))
            for name, found in sorted(pieces.items())
            if sum(map(len, found))
        }
        if not indices:
            raise RegionError(
                f"The method {self.method} chose no unit; give a fraction to take those with the highest scores, or "
                "locate with other prompts or settings."
            )
        metadata = self._metadata(
            indices,
            layout,
            outside,
            selection=record,
            layout=layout,
            granularity=self.granularity,
            units="units",
            selected_units=self._named(chosen),
            scored_units=self._scored(),
        )
        return Region(indices, metadata)

    def _scored(self) -> dict[str, int]:
        """How many units of each kind there are."""
        counts: dict[str, int] = {}
        for group in self.groups:
            counts[group.kind] = counts.get(group.kind, 0) + group.size
        return counts

    def _named(self, chosen: list[torch.Tensor]) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Per kind the selected units as (layer, expert or -1, number within the group's shape ...)."""
        named: dict[str, list[tuple[int, ...]]] = {}
        for group, units in zip(self.groups, chosen, strict=True):
            place = (group.layer, -1 if group.expert is None else group.expert)
            indices = np.unravel_index(units.numpy(), group.shape)
            rows = [(*place, *map(int, index)) for index in zip(*indices, strict=True)]
            named.setdefault(group.kind, []).extend(rows)
        return {kind: tuple(sorted(rows)) for kind, rows in sorted(named.items()) if rows}
