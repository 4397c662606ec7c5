from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.errors import NumericalError, RegionError, UsageError
from ballast.regions import exact_fraction, exact_threshold, rows, select_top, threshold
from tests.regions.worlds import PARTS, SmallPart

DENORMAL = 1e-45  # the smallest positive fp32 number


def tied_scores(seed: int) -> dict[str, torch.Tensor]:
    """Scores from a few values, among them zeros of both signs, denormals and neighbours in the last bit."""
    random = np.random.default_rng(seed)
    pool = np.array(
        [0.0, -0.0, DENORMAL, 2 * DENORMAL, 1e-38, 1.0, np.nextafter(np.float32(1), np.float32(2)), 1.5, 3e38],
        np.float32,
    )
    pool = np.concatenate([pool, random.random(int(random.integers(1, 40)), np.float32)])
    values = random.choice(pool, int(random.integers(1, len(pool) + 1)), replace=False)
    return {part.name: torch.from_numpy(random.choice(values, part.shape)) for part in PARTS}


def ranked(entries: list[tuple[float, str, int]], direction: str) -> list[tuple[float, str, int]]:
    sign = -1 if direction == "top" else 1
    return sorted(entries, key=lambda entry: (sign * entry[0], entry[1], entry[2]))


def unit_of(part: SmallPart, position: tuple[int, ...], scope: str) -> tuple[object, ...]:
    """The unit that an entry is ranked in, found from its multi-index."""
    if scope == "global":
        return ()
    if scope == "per_layer":
        return (part.layer,)
    axes = [axis for axis in range(len(part.shape)) if axis != part.expert_dim]
    expert = None if part.expert_dim is None else position[part.expert_dim]
    if scope == "per_tensor":
        return (part.name, expert)
    return (part.name, expert, position[axes[0 if part.orientation == "out_in" else 1]])


def brute_force(scores: dict[str, torch.Tensor], fraction: str, scope: str, direction: str) -> set[tuple[str, int]]:
    units = defaultdict(list)
    for part in PARTS:
        values = scores[part.name].flatten().tolist()
        for flat, position in enumerate(itertools.product(*map(range, part.shape))):
            units[unit_of(part, position, scope)].append((abs(values[flat]), part.name, flat))
    chosen = set()
    for entries in units.values():
        k = math.floor(Fraction(fraction) * len(entries))
        kept = ranked(entries, direction)[:k]
        chosen |= {entry[1:] for entry in kept if direction == "bottom" or entry[0] > 0}
    return chosen


def entries_of(selection) -> set[tuple[str, int]]:
    return {(name, place) for name, indices in selection.indices.items() for place in indices.tolist()}


@pytest.mark.parametrize("direction", ["top", "bottom"])
@pytest.mark.parametrize("chunk", [3, 1 << 18])
def test_threshold_equals_a_full_sort_on_200_tied_cases(direction, chunk, monkeypatch):
    monkeypatch.setattr(threshold, "CHUNK", chunk)
    for seed in range(200):
        scores = tied_scores(seed)
        ordered = np.sort(np.abs(np.concatenate([values.numpy().ravel() for values in scores.values()])))
        ordered = ordered[::-1] if direction == "top" else ordered
        k = 1 + seed * 7 % ordered.size
        value = float(ordered[k - 1])
        if direction == "top" and value == 0:
            with pytest.raises(RegionError, match=rf"{k - np.count_nonzero(ordered)} too few"):
                exact_threshold(scores, k)
            continue
        cut = exact_threshold(scores, k, direction)
        assert cut.value == value
        assert cut.above == np.count_nonzero(ordered > value if direction == "top" else ordered < value)
        assert cut.above + cut.ties_taken == k
        assert cut.ties_total == np.count_nonzero(ordered == value)


@pytest.mark.parametrize("chunk", [1, 5, 1 << 18])
@pytest.mark.parametrize("direction", ["top", "bottom"])
@pytest.mark.parametrize("scope", ["global", "per_layer", "per_tensor", "per_row"])
def test_every_scope_equals_its_brute_force_twin(scope, direction, chunk, monkeypatch):
    monkeypatch.setattr(threshold, "CHUNK", chunk)
    monkeypatch.setattr(rows, "BLOCK", 3 * chunk)
    checked = 0
    for seed, fraction in zip(range(40), itertools.cycle(["0.01", "0.1", "0.3", "0.5", "0.77", "1"])):
        scores = tied_scores(seed)
        expected = brute_force(scores, fraction, scope, direction)
        n = sum(part.numel for part in PARTS)
        if not expected or (scope == "global" and len(expected) < math.floor(Fraction(fraction) * n)):
            with pytest.raises(RegionError):
                select_top(scores, fraction, scope=scope, parts=PARTS, direction=direction)
            continue
        selection = select_top(scores, fraction, scope=scope, parts=PARTS, direction=direction)
        assert entries_of(selection) == expected
        assert selection.record.actual == len(expected)
        assert selection.record.requested == math.floor(Fraction(fraction) * n)
        assert selection.record.eligible == n
        for indices in selection.indices.values():
            assert indices.dtype == torch.int32
            assert (indices[1:] > indices[:-1]).all()
        checked += 1
    assert checked > 15


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(min_value=0, width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.integers(1, 60),
)
def test_any_finite_scores_are_ranked_as_a_stable_sort_ranks_them(values, k):
    k = min(k, len(values))
    scores = torch.tensor(values, dtype=torch.float32)
    parts = (SmallPart("w", 0, "query", (len(values),)),)
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))[:k]
    if values[order[-1]] == 0:
        with pytest.raises(RegionError, match="above zero"):
            select_top({"w": scores}, count=k, parts=parts)
    else:
        assert select_top({"w": scores}, count=k, parts=parts).indices["w"].tolist() == sorted(order)


def test_ties_go_to_the_first_name_by_code_point_then_the_first_index():
    parts = [SmallPart(name, 0, "query", (1, 3)) for name in ("b", "a", "Z")]
    scores = {part.name: torch.tensor([[1.0, 2.0, 1.0]]) for part in parts}
    selection = select_top(scores, count=6, parts=parts)
    assert {name: indices.tolist() for name, indices in selection.indices.items()} == {
        "Z": [0, 1, 2],
        "a": [0, 1],
        "b": [1],
    }
    assert (selection.record.ties_taken, selection.record.ties_left) == (3, 3)
    assert selection.record.thresholds == {"all": 1.0}


def test_hand_computed_esi_example():
    # W1, W2 and their scores from the golden test of the ESI specification
    parts = [SmallPart("W1", 0, "up", (2, 2)), SmallPart("W2", 0, "down", (2, 2))]
    scores = {
        "W1": torch.tensor([[1.632993, 0.0], [0.816497, 0.0]]),
        "W2": torch.tensor([[0.957427, 0.0], [0.957427, 0.0]]),
    }
    top_two = select_top(scores, count=2, parts=parts)
    assert {name: indices.tolist() for name, indices in top_two.indices.items()} == {"W1": [0], "W2": [0]}
    with pytest.raises(RegionError, match=r"Only 4 of 8 scores are above zero but 5 are needed \(1 too few\)"):
        select_top(scores, count=5, parts=parts)


def test_a_lazy_mapping_is_read_one_tensor_at_a_time():
    class Lazy(dict):
        reads = 0

        def __getitem__(self, name):
            Lazy.reads += 1
            return super().__getitem__(name) * 2

        def items(self):
            return ((name, self[name]) for name in self)

    scores = {part.name: torch.rand(part.shape) for part in PARTS}
    assert entries_of(select_top(Lazy(scores), "0.2", parts=PARTS)) == entries_of(
        select_top(scores, "0.2", parts=PARTS)
    )
    assert Lazy.reads == 3 * len(PARTS)


def test_non_contiguous_scores_are_read_in_c_order():
    scores = torch.tensor([[5.0, 1.0, 4.0], [2.0, 6.0, 3.0]])
    parts = (SmallPart("w", 0, "query", (3, 2)),)
    assert select_top({"w": scores.T}, count=3, parts=parts).indices["w"].tolist() == [0, 3, 4]


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf"), -1.0, -DENORMAL])
@pytest.mark.parametrize("scope", ["global", "per_row"])
def test_a_score_that_cannot_be_ranked_names_its_tensor(bad, scope):
    scores = {part.name: torch.ones(part.shape) for part in PARTS}
    scores["layers.10.query"][1, 2] = bad
    with pytest.raises(NumericalError, match=r"layers\.10\.query"):
        select_top(scores, 0.5, scope=scope, parts=PARTS)


def test_fractions_are_taken_as_written():
    assert exact_fraction(0.01) == exact_fraction("0.01") == Fraction(1, 100)
    parts = (SmallPart("w", 0, "query", (1, 100)),)
    scores = {"w": torch.arange(1.0, 101.0).reshape(1, 100)}
    for percent in range(1, 101):  # in binary, floor(0.29 * 100) is 28
        assert select_top(scores, percent / 100, parts=parts).record.requested == percent


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0000001, "nan", "much", float("inf"), "1/0"])
def test_a_fraction_outside_of_its_range_is_refused(fraction):
    with pytest.raises(UsageError, match="fraction"):
        select_top({"lm_head": torch.ones(4, 5)}, fraction, parts=PARTS)


def test_nothing_to_select_is_an_error():
    with pytest.raises(RegionError, match="larger fraction"):
        select_top({"lm_head": torch.ones(4, 5)}, 0.01, parts=PARTS)
    with pytest.raises(RegionError, match="larger fraction"):
        select_top({"lm_head": torch.ones(4, 5)}, 0.1, scope="per_row", parts=PARTS)
    with pytest.raises(RegionError, match="eligible"):
        select_top({}, 0.01, parts=PARTS)


def test_arguments_that_do_not_fit_each_other_are_refused():
    scores = {"lm_head": torch.ones(4, 5)}
    for arguments in (
        {},
        {"fraction": 0.5, "count": 2},
        {"count": 2, "scope": "per_row"},
        {"fraction": 1, "scope": "x"},
    ):
        with pytest.raises(UsageError):
            select_top(scores, parts=PARTS, **arguments)
    with pytest.raises(UsageError, match="only 20 have scores"):
        select_top(scores, count=21, parts=PARTS)
    with pytest.raises(UsageError, match="output neurons"):
        select_top({"b": torch.ones(4)}, 0.5, scope="per_row", parts=[SmallPart("b", 0, "bias", (4,), "none")])


def test_an_expert_without_scores_is_short_not_filled_with_zeros():
    scores = {"layers.10.experts": torch.rand(3, 4, 5) + 0.1}
    scores["layers.10.experts"][1] = 0
    selection = select_top(scores, 0.5, scope="per_tensor", parts=PARTS)
    chosen = selection.indices["layers.10.experts"] // 20
    assert torch.bincount(chosen, minlength=3).tolist() == [10, 0, 10]
    assert (selection.record.requested, selection.record.actual, selection.record.short_units) == (30, 20, 1)
    assert selection.record.ties_left == 0


class TestLayers:
    @pytest.mark.parametrize("scope", ["per_layer", "per_tensor", "per_row"])
    @pytest.mark.parametrize("layers", [{10}, {2}, {2, 10}])
    def test_units_of_other_layers_give_nothing(self, scope, layers):
        scores = tied_scores(5)
        inside = {part.name for part in PARTS if part.layer in layers}
        expected = {entry for entry in brute_force(scores, "0.3", scope, "top") if entry[0] in inside}
        selection = select_top(scores, "0.3", scope=scope, parts=PARTS, layers=layers)
        assert entries_of(selection) == expected
        assert selection.record.layers == tuple(sorted(layers))

    def test_a_global_selection_keeps_its_size(self):
        random = np.random.default_rng(0)
        scores = {part.name: torch.from_numpy(1 + random.random(part.shape, np.float32)) for part in PARTS}
        entries = [
            (float(value), part.name, place)
            for part in PARTS
            if part.layer == 10
            for place, value in enumerate(scores[part.name].flatten())
        ]
        k = math.floor(0.1 * sum(part.numel for part in PARTS))
        selection = select_top(scores, "0.1", parts=PARTS, layers=[10])
        assert entries_of(selection) == {entry[1:] for entry in ranked(entries, "top")[:k]}
        assert selection.record.requested == selection.record.actual == k
        assert selection.layout.keys() == scores.keys()  # what was eligible does not change

    @pytest.mark.parametrize("layers", [[3], [2, 11], []])
    def test_unknown_layers(self, layers):
        with pytest.raises(UsageError, match=rf"^Layers {re.escape(str(layers))} were asked for.* 2 to 10\.$"):
            select_top(tied_scores(1), "0.1", parts=PARTS, layers=layers)

    def test_too_few_weights_in_the_layers(self):
        with pytest.raises(UsageError, match=r"^200 weights were asked for but only 84 have scores"):
            select_top(tied_scores(1), "0.9", parts=PARTS, layers=[10])
