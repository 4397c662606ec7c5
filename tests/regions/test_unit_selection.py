"""Which units are selected, by hand and against a sort."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.errors import NumericalError, RegionError, UsageError
from ballast.regions.selection import SelectionRecord
from ballast.regions.threshold import Direction
from ballast.regions.unit_selection import UnitScope, select_units

torch.set_num_threads(1)


class Units(NamedTuple):
    kind: str
    layer: int


GROUPS = (Units("feed_forward", 0), Units("value", 0), Units("feed_forward", 1), Units("value", 1))
VALUES = tuple(torch.tensor(row) for row in ([9.0, 1.0, 8.0, 2.0], [0.5, 0.25], [3.0, 7.0, 6.0, 0.0], [0.125, 0.75]))


def select(
    fraction: float | str | None,
    scope: UnitScope = "per_kind",
    direction: Direction = "top",
    barred: tuple[tuple[int, int], ...] = (),
    own: list[torch.Tensor] | None = None,
    values: tuple[torch.Tensor, ...] = VALUES,
) -> tuple[list[list[int]], SelectionRecord]:
    allowed = [torch.ones(len(value), dtype=torch.bool) for value in values]
    for group, unit in barred:
        allowed[group][unit] = False
    chosen, record = select_units(
        GROUPS, values, allowed, own=own, fraction=fraction, scope=scope, direction=direction, layers=None
    )
    return [units.tolist() for units in chosen], record


def test_per_kind() -> None:
    chosen, record = select(0.5)
    assert chosen == [[0, 2], [0], [1, 2], [1]]
    assert (record.requested, record.actual, record.eligible) == (6, 6, 12)
    assert record.thresholds == {"feed_forward": 6.0, "value": 0.5}
    assert (record.ties_taken, record.ties_left) == (2, 0)


def test_global_and_per_layer() -> None:
    assert select("1/4", "global")[0] == [[0, 2], [], [1], []]
    assert select("1/3", "per_layer")[0] == [[0, 2], [], [1, 2], []]


def test_bottom() -> None:
    assert select("1/4", "global", "bottom")[0] == [[], [1], [3], [0]]


def test_barred_units_are_replaced_by_the_next_best() -> None:
    assert select(0.5, barred=((0, 0), (3, 1)))[0] == [[2], [0, 1], [0, 1, 2], []]


def test_the_methods_own_choice_is_taken_without_a_fraction() -> None:
    own = [torch.tensor([3, 0]), torch.tensor([], dtype=torch.long), torch.tensor([1]), torch.tensor([0, 1])]
    chosen, record = select(None, own=own, barred=((3, 0),))
    assert chosen == [[0, 3], [], [1], [1]]
    assert (record.scope, record.fraction, record.requested, record.actual) == ("own", None, 5, 4)
    assert select(0.5, own=own)[0] == select(0.5)[0]


def test_ties_go_to_the_first() -> None:
    same = tuple(torch.ones_like(value) for value in VALUES)
    chosen, record = select(0.25, values=same)
    assert chosen == [[0, 1], [0], [], []]
    assert (record.ties_taken, record.ties_left) == (3, 9)


def test_what_cannot_be_selected() -> None:
    with pytest.raises(RegionError, match=r"0 of 4 units \(value\) were asked for"):
        select(0.2)
    with pytest.raises(RegionError, match=r"8 of 8 units \(feed_forward\) were asked for and 7 can be selected"):
        select(1.0)
    with pytest.raises(UsageError, match="outside of"):
        select(1.5)
    with pytest.raises(NumericalError, match="not finite"):
        select(0.5, values=(torch.tensor([math.nan, 1, 1, 1]), *VALUES[1:]))


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=9), min_size=4, max_size=4), st.integers(1, 10))
@settings(max_examples=80, deadline=None)
def test_equals_a_sort(rows: list[list[int]], tenths: int) -> None:
    values = tuple(torch.tensor(row, dtype=torch.float32) for row in rows)
    everything = sorted((-score, group, unit) for group, row in enumerate(rows) for unit, score in enumerate(row))
    count = tenths * len(everything) // 10
    if count:
        chosen, _ = select(f"{tenths}/10", "global", values=values)
        found = sorted((group, unit) for group, units in enumerate(chosen) for unit in units)
        assert found == sorted((group, unit) for _, group, unit in everything[:count])
