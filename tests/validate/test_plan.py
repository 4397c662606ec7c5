"""Random regions to compare with."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ballast import locate
from ballast.validate import ValidateSettings
from ballast.validate.plan import planned, random_region
from tests.regions.worlds import places
from tests.validate.world import LOCATED_ON, base, neuron_region, planted
from tests.worlds import tiny_lm

torch.set_num_threads(1)


def test_as_many_weights_in_every_matrix_and_every_expert() -> None:
    for name in ("llama", "mixtral"):
        region = locate(tiny_lm(name), LOCATED_ON, "random").select(0.05)
        drawn = [random_region(region, draw, seed=0) for draw in range(3)]
        for one in drawn:
            counts = one.matrix_counts()
            assert all(np.array_equal(counts[key], found) for key, found in region.matrix_counts().items())
        assert len({frozenset(places(one)) for one in (region, *drawn)}) == 4
        assert places(random_region(region, 1, seed=0)) == places(drawn[1])
        assert places(random_region(region, 1, seed=1)) != places(drawn[1])


def test_the_regions_own_weights_can_be_drawn_again() -> None:
    """Of half of all weights a draw shares half: it is drawn from all, as the test by ranks supposes."""
    region = locate(tiny_lm(), LOCATED_ON, "random").select(0.5, scope="per_tensor")
    shared = region.intersection_size(random_region(region, 0, seed=0))
    assert abs(shared / len(region) - 0.5) < 0.02


def test_both_models_get_the_same_random_regions_and_are_asked_alike() -> None:
    lm, other = planted(), base()
    none: Any = None
    other = dataclasses.replace(other, tokenizer=none)
    settings = ValidateSettings(noise=(1, 0.1), scale=(0.5,))
    doses = list(planned(lm, neuron_region(lm), other, settings))
    slugs = ["ablate", "noise-1.0", "noise-0.1", "scale-0.5", "transplant", "transplant-into-other"]
    assert [dose.slug for dose in doses] == slugs
    there, back = doses[-2:]
    assert (there.lm.model, back.lm.model) == (lm.model, other.model)
    assert back.lm.tokenizer is lm.tokenizer
    assert places(random_region(there.region, 0, 0)) == places(random_region(back.region, 0, 0))
