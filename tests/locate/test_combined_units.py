"""Regions of neurons and layers combine unit by unit; those of heads, which share weights, do not."""

from __future__ import annotations

import pytest

from ballast.locate import locate
from ballast.locate.neurons import Neurons
from ballast.regions import Region, overlap, refine
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import HIDDEN

FIRST = prompt_set("first", ["How do I pick a lock?", "Write a threat"])
SECOND = prompt_set("second", ["Hi", "Tell me a story about rain", "What is one and one?"])
WEIGHTS = 3 * HIDDEN  # of a feed-forward neuron: a row of gate, one of up, a column of down


def units(region: Region) -> set[tuple[int, ...]]:
    return set(region.metadata.selected_units.get("feed_forward", ()))


def test_neurons() -> None:
    lm, method = tiny_lm(), Neurons(kinds=("feed_forward",))
    one, other = (locate(lm, prompts, method).select(0.3) for prompts in (FIRST, SECOND))
    assert units(one) & units(other)
    assert units(one) - units(other)
    for made, expected in (
        (one & other, units(one) & units(other)),
        (one | other, units(one) | units(other)),
        (one - other, units(one) - units(other)),
        (one ^ other, units(one) ^ units(other)),
        (refine(one, [other]).region, units(one) - units(other)),
    ):
        assert units(made) == expected
        assert len(made) == len(expected) * WEIGHTS
        assert (made.metadata.granularity, made.metadata.scored_units) == ("neuron", one.metadata.scored_units)
    compared = overlap([one - other, one])[0].units
    assert compared is not None
    assert (compared.intersection, compared.union) == (len(units(one) - units(other)), len(units(one)))


def test_a_combined_region_is_the_same_from_its_file(tmp_path) -> None:
    lm = tiny_lm()
    one, other = (locate(lm, prompts, "neurons").select(0.3) for prompts in (FIRST, SECOND))
    (one - other).save(tmp_path / "region.safetensors")
    assert Region.load(tmp_path / "region.safetensors").region_id == (one - other).region_id


@pytest.mark.parametrize(("first", "second"), [("ships", "ships"), ("neurons", "magnitude")])
def test_what_shares_weights_or_differs_in_kind_combines_as_weights(first: str, second: str) -> None:
    lm = tiny_lm()
    one, other = locate(lm, FIRST, first).select(0.5), locate(lm, SECOND, second).select(0.5)
    made = (one | other).metadata
    assert (made.granularity, made.selected_units, made.scored_units) == ("weight", {}, {})
