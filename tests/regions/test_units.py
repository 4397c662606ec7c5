"""Layers and matrices by hand; neurons against the entries that their groups name."""

from __future__ import annotations

import pytest
import torch

from ballast.models.units import neuron_groups
from ballast.regions.layout import layout_of
from ballast.regions.units import layer_units, matrix_units, neuron_units
from tests.regions.worlds import PARTS
from tests.worlds import tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

LAYOUT = layout_of(PARTS, [part.name for part in PARTS])  # in code-point order: layer 10 comes before layer 2


def test_layers() -> None:
    units = layer_units(LAYOUT)
    assert (units.kind, units.count) == ("layer", 3)  # 10, 2 and the head outside of the layers
    assert units.sizes().tolist() == [24 + 60, 35 + 24 + 36 + 24, 20]
    chosen = {"layers.2.query": torch.tensor([0, 34]), "layers.10.experts": torch.tensor([59])}
    assert units.counted(chosen).tolist() == [1, 2, 0]


def test_matrices_are_one_per_expert() -> None:
    units = matrix_units(LAYOUT)
    sizes = [20] * 3 + [24] + [18] * 2 + [24] + [12] * 2  # experts, query of 10, Zexperts, down, last
    assert units.sizes().tolist() == [*sizes, 35, 20]
    # (4, 3, 2) with experts along the last axis: even places are the first expert's
    assert units.counted({"layers.2.last": torch.tensor([0, 2, 3])}).tolist() == [0] * 7 + [2, 1, 0, 0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neurons_own_the_entries_that_their_group_names(architecture: str) -> None:
    lm = tiny_lm(architecture)
    units, groups = neuron_units(lm), neuron_groups(lm, ("feed_forward",))[0]
    sizes = units.sizes()
    assert len(sizes) == units.count == sum(group.size for group in groups)
    first = 0
    for group in groups:
        for number in (0, 7, group.size - 1):
            entries = group.entries(torch.tensor([number]))
            counts = units.counted(entries)
            assert counts.nonzero()[0].tolist() == [first + number]
            assert counts[first + number] == sizes[first + number] == sum(map(len, entries.values()))
        first += group.size
    feed_forward = [part for part in lm.parts.eligible() if part.name in units.numbers]
    assert sizes.sum() == sum(part.numel for part in feed_forward)
    assert all(part.role.rpartition(".")[2] in ("gate", "up", "gate_up", "down") for part in feed_forward)
