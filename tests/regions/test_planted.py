"""Regions that are drawn: how many weights, from where, and how evenly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ballast.errors import UsageError
from ballast.regions import Region
from ballast.regions.planted import neuron_group, random_mask, whole_parameters
from ballast.regions.units import units_of
from tests.regions.worlds import places
from tests.worlds import tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_and_places(architecture: str, tmp_path: Path) -> None:
    lm = tiny_lm(architecture)
    layers = sorted({part.layer for part in lm.parts.eligible() if part.layer is not None})
    inside = {part.name for part in lm.parts.eligible() if part.layer == layers[-1]}
    mask, part = random_mask(lm, 501, seed=3), random_mask(lm, 501, seed=3, layers=layers[-1:])
    neurons, whole = neuron_group(lm, 5, seed=3, layer=layers[-1]), whole_parameters(lm, 2, seed=3, layers=layers[-1:])
    assert len(mask) == len(part) == 501
    assert mask.indices.keys() - inside
    assert part.indices.keys() | neurons.indices.keys() | whole.indices.keys() <= inside
    assert len(whole.indices) == 2
    assert all(len(found) == lm.parts.by_name(name).numel for name, found in whole.indices.items())
    eligible = sum(one.numel for one in lm.parts.eligible())
    for region in (mask, part, neurons, whole):
        assert region.metadata.eligible == eligible
        region.check_model(lm.fingerprints(), {name: value.shape for name, value in lm.model.named_parameters()})
        region.save(tmp_path / "region.safetensors")
        assert Region.load(tmp_path / "region.safetensors").region_id == region.region_id


def test_the_seed_decides() -> None:
    lm = tiny_lm()
    assert places(random_mask(lm, 300, seed=0)) == places(random_mask(lm, 300, seed=0))
    assert places(random_mask(lm, 300, seed=0)) != places(random_mask(lm, 300, seed=1))
    drawn = [neuron_group(lm, 5, seed=seed, layer=1) for seed in (0, 0, 1)]
    assert places(drawn[0]) == places(drawn[1]) != places(drawn[2])
    assert len({frozenset(whole_parameters(lm, 2, seed=seed).indices) for seed in range(8)}) > 3


def test_a_mask_is_uniform_over_all_weights() -> None:
    """Each weight of 15,360 is drawn in 400 masks of a tenth as often as binomial(400, 0.1) says."""
    lm = tiny_lm()
    parts = lm.parts.eligible()
    drawn = {part.name: np.zeros(part.numel) for part in parts}
    for seed in range(400):
        for name, indices in random_mask(lm, 1536, seed=seed).indices.items():
            drawn[name][indices.numpy()] += 1
    together = np.concatenate(list(drawn.values()))
    assert together.mean() == pytest.approx(40)
    assert together.var() == pytest.approx(400 * 0.1 * 0.9, rel=0.05)
    for counts in drawn.values():  # no parameter and no end of a parameter is preferred
        for piece in (counts, counts[: len(counts) // 2], counts[:32]):
            assert abs(piece.mean() - 40) < 4.5 * 6 / len(piece) ** 0.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neurons_are_planted_whole(architecture: str) -> None:
    lm = tiny_lm(architecture)
    units, planted = units_of(lm, "neuron"), neuron_group(lm, 17, seed=1, layer=1)
    counts = units.counted(planted.indices)
    assert np.count_nonzero(counts) == 17
    assert (counts == np.where(counts > 0, units.sizes(), 0)).all()
    assert {lm.parts.by_name(name).layer for name in planted.indices} == {1}


def test_what_cannot_be_drawn_is_refused() -> None:
    lm = tiny_lm()
    with pytest.raises(UsageError, match="15361 of 15360 weights cannot be drawn"):
        random_mask(lm, 15361, seed=0)
    with pytest.raises(UsageError, match="5 of 0 weights"):
        random_mask(lm, 5, seed=0, layers=[7])
    with pytest.raises(UsageError, match="49 of 48 neurons"):
        neuron_group(lm, 49, seed=0, layer=0)
    with pytest.raises(UsageError, match="0 of 14 parameters"):
        whole_parameters(lm, 0, seed=0)
