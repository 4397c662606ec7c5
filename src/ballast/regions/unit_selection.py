"""Which units are selected: the largest scores of all, of each kind or of each layer, exactly."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Literal, Protocol

import torch

from ballast.errors import NumericalError, RegionError
from ballast.regions.selection import DEFAULT_FRACTION, SelectionRecord, exact_fraction
from ballast.regions.threshold import Direction

UnitScope = Literal["global", "per_layer", "per_kind"]


class Group(Protocol):
    """What is asked of a group of units."""

    @property
    def kind(self) -> str:
        """Such as `feed_forward` or `head`."""
        ...

    @property
    def layer(self) -> int:
        """Its decoder block."""
        ...


def select_units(
    groups: Sequence[Group],
    values: Sequence[torch.Tensor],
    allowed: Sequence[torch.Tensor],
    *,
    own: Sequence[torch.Tensor] | None,
    fraction: Fraction | float | str | None,
    scope: UnitScope,
    direction: Direction,
    layers: Collection[int] | None,
) -> tuple[list[torch.Tensor], SelectionRecord]:
    """The numbers of the selected units in each group, ascending, and how they were found.

    Args:
        groups: The units that were scored.
        values: (m,) fp32 scores of each group, non-negative and finite.
        allowed: (m,) which units may be selected.
        own: The method's own choice, taken when no fraction is given.
        fraction: Share of the units ranked together; floor(fraction * n). Of all of them, allowed or not, unless the
            scope is per layer.
        scope: What is ranked together.
        direction: `top`, or `bottom`. Ties go to the first in order of groups and numbers.
        layers: For the record.

    Raises:
        RegionError: A fraction selects nothing, or too few scores are above zero.
        NumericalError: A score is not finite or negative.
    """
    for value in values:
        if not (torch.isfinite(value).all() and (value >= 0).all()):
            raise NumericalError("A score is not finite or negative; open the model in float32 or use other prompts.")
    eligible = sum(map(len, values))
    if own is not None and fraction is None:
        kept = [units[allow[units]].sort().values for units, allow in zip(own, allowed, strict=True)]
        record = SelectionRecord(
            scope="own",
            direction="top",
            fraction=None,
            requested=sum(map(len, own)),
            actual=sum(map(len, kept)),
            eligible=eligible,
            thresholds={},
            ties_taken=0,
            ties_left=0,
            layers=None if layers is None else tuple(sorted(layers)),
        )
        return kept, record
    share = exact_fraction(DEFAULT_FRACTION if fraction is None else fraction)
    together: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        names = {"global": "all", "per_layer": f"layer {group.layer}", "per_kind": group.kind}
        together[names[scope]].append(number)
    chosen = [torch.zeros(0, dtype=torch.long) for _ in groups]
    thresholds: dict[str, float] = {}
    requested = taken = left = 0
    for name, members in together.items():
        scores = torch.cat([values[number] for number in members])
        may = torch.cat([allowed[number] for number in members])
        if scope != "global" and not may.any():
            continue
        count = math.floor(share * len(scores))
        ranked = scores.masked_fill(~may, -1.0 if direction == "top" else math.inf)
        usable = int((ranked > 0).sum()) if direction == "top" else int(may.sum())
        if count == 0 or usable < count:
            raise RegionError(
                f"{count} of {len(scores)} units ({name}) were asked for and {usable} can be selected; "
                "choose another fraction."
            )
        order = ranked.sort(descending=direction == "top", stable=True).indices[:count]
        cut = float(ranked[order[-1]])
        thresholds[name] = cut
        requested += count
        ties = int((ranked == cut).sum())
        within = int((ranked[order] == cut).sum())
        taken, left = taken + within, left + ties - within
        start = 0
        for number in members:
            size = len(values[number])
            mine = order[(order >= start) & (order < start + size)] - start
            chosen[number] = mine.sort().values
            start += size
    record = SelectionRecord(
        scope=scope,
        direction=direction,
        fraction=str(share),
        requested=requested,
        actual=sum(map(len, chosen)),
        eligible=eligible,
        thresholds=thresholds,
        ties_taken=taken,
        ties_left=left,
        layers=None if layers is None else tuple(sorted(layers)),
    )
    return chosen, record
