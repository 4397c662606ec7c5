"""Recovery of a planted region against every region that chance could have found."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch

from ballast.errors import RegionError
from ballast.regions import Region
from ballast.regions.recovery import at_planted_size, recovery, unit_recovery
from ballast.regions.units import layer_units
from tests.regions.worlds import SmallPart, places, region

TINY = (SmallPart("a", 0, "query", (2, 2)), SmallPart("b", 1, "query", (1, 4)))
PLANTED = region({"a": [0, 1, 2], "b": [3]}, TINY)


def all_regions(size: int) -> list[Region]:
    weights = [(part.name, place) for part in TINY for place in range(4)]
    return [
        region({name: {place for other, place in chosen if other == name} for name, _ in chosen}, TINY)
        for chosen in itertools.combinations(weights, size)
    ]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_chance_is_the_share_of_all_regions(size: int) -> None:
    drawn = all_regions(size)
    shared = [len(places(found) & places(PLANTED)) for found in drawn]
    for found, count in zip(drawn, shared, strict=True):
        result = recovery(found.indices, PLANTED)
        assert (result.planted, result.found, result.shared) == (4, size, count)
        assert (result.precision, result.recall) == (count / size, count / 4)
        assert result.chance == pytest.approx(np.mean(shared) / size)
        assert result.p == pytest.approx(np.mean([other >= count for other in shared]))
        alike = [other for other in drawn if other.matrix_counts().__repr__() == found.matrix_counts().__repr__()]
        expected = np.mean([len(places(other) & places(PLANTED)) for other in alike]) / size
        assert result.within_matrices == pytest.approx(expected)


def test_at_the_planted_size_precision_is_recall() -> None:
    for found in all_regions(4)[::7]:
        assert recovery(found.indices, PLANTED).precision == recovery(found.indices, PLANTED).recall


def test_the_interval_leaves_out_at_most_a_fortieth_at_each_end() -> None:
    part = SmallPart("w", 0, "query", (40, 25))
    planted, found = region({"w": range(100)}, [part]), region({"w": range(50, 130)}, [part])
    result = recovery(found.indices, planted)
    exact = [
        Fraction(math.comb(100, k) * math.comb(900, 80 - k), math.comb(1000, 80)) for k in range(81)
    ]  # probability of k shared weights
    low, high = round(result.low * 80), round(result.high * 80)
    assert sum(exact[:low]) <= Fraction(1, 40) < sum(exact[: low + 1])
    assert sum(exact[high + 1 :]) <= Fraction(1, 40) < sum(exact[high:])
    assert result.p == pytest.approx(float(sum(exact[50:])))


class TestUnits:
    PARTS = tuple(SmallPart(f"layers.{layer}.query", layer, "query", (2, 5)) for layer in range(4))

    def region(self, *counts: int) -> Region:
        return region({f"layers.{layer}.query": range(count) for layer, count in enumerate(counts)}, self.PARTS)

    def test_by_hand(self) -> None:
        planted = self.region(0, 2, 3, 0)
        best = unit_recovery(self.region(1, 5, 4, 0).indices, planted, layer_units(planted.layout))
        assert best == ("layer", 2, 4, 1.0, 0.5, 1.0)
        # the order is 3, 1, 0, 2: of the first two one is planted; of four pairs layer 1 wins against 0, 2 against none
        mixed = unit_recovery(self.region(3, 5, 1, 7).indices, planted, layer_units(planted.layout))
        assert mixed == ("layer", 2, 4, 0.5, 0.5, 0.25)
        worst = unit_recovery(self.region(3, 0, 1, 7).indices, planted, layer_units(planted.layout))
        assert worst == ("layer", 2, 4, 0.0, 0.5, 0.0)

    def test_a_unit_counts_by_its_share(self) -> None:
        """Four of ten weights are more than five of twenty."""
        parts = (SmallPart("a", 0, "query", (2, 5)), SmallPart("b", 1, "query", (4, 5)))
        found, planted = region({"a": range(4), "b": range(5)}, parts), region({"a": [9]}, parts)
        assert unit_recovery(found.indices, planted, layer_units(planted.layout)).precision == 1

    @pytest.mark.parametrize("counts", [(2, 2, 1, 2), (0, 0, 0, 5), (1, 1, 1, 1), (3, 3, 5, 5)])
    def test_ties_count_as_the_mean_over_their_orders(self, counts: tuple[int, ...]) -> None:
        planted = self.region(0, 1, 0, 1)
        result = unit_recovery(self.region(*counts).indices, planted, layer_units(planted.layout))
        precisions, areas = [], []
        for order in itertools.permutations(range(4)):
            if any(counts[a] < counts[b] for a, b in itertools.pairwise(order)):
                continue
            precisions.append(len({1, 3} & set(order[:2])) / 2)
            areas.append(np.mean([order.index(a) < order.index(b) for a in (1, 3) for b in (0, 2)]))
        assert result.precision == pytest.approx(np.mean(precisions))
        assert result.area == pytest.approx(np.mean(areas))

    def test_nothing_to_tell_apart_is_refused(self) -> None:
        everywhere = self.region(1, 1, 1, 1)
        with pytest.raises(RegionError, match="4 of 4 units are planted, so no layer can be found"):
            unit_recovery(self.region(1, 0, 0, 0).indices, everywhere, layer_units(everywhere.layout))


class TestAtPlantedSize:
    SCORES = MappingProxyType({"a": torch.tensor([[0.1, 0.5], [0.2, 0.0]]), "b": torch.tensor([[0.9, 0.0, 0.3, 0.0]])})

    def test_takes_the_largest_scores(self) -> None:
        found = at_planted_size(self.SCORES, PLANTED, TINY)
        assert {name: indices.tolist() for name, indices in found.items()} == {"a": [1, 2], "b": [0, 2]}

    def test_takes_fewer_if_fewer_are_above_zero(self) -> None:
        scores = {**self.SCORES, "a": torch.zeros(2, 2)}
        found = at_planted_size(scores, PLANTED, TINY)
        assert {name: indices.tolist() for name, indices in found.items()} == {"b": [0, 2]}
        assert recovery(found, PLANTED).found == 2

    def test_bottom_takes_zeros(self) -> None:
        found = at_planted_size(self.SCORES, PLANTED, TINY, "bottom")
        assert {name: indices.tolist() for name, indices in found.items()} == {"a": [0, 3], "b": [1, 3]}


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(RegionError, match="lm_head is not in the layout of the planted region"):
        recovery(region({"lm_head": [1]}).indices, PLANTED)
    with pytest.raises(RegionError, match="No weight was found"):
        recovery({}, PLANTED)
