"""Teaching a planted region: only it changes, it learns, and nothing is left behind."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ballast.errors import NumericalError, RegionError, UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.regions import Region, neuron_group, random_mask, whole_parameters
from ballast.tune.curriculum import Curriculum
from ballast.tune.lessons import help_lessons, refusal_lessons
from ballast.tune.teach import taught
from tests.tune.world import HARMLESS, REFUSALS, SETTINGS
from tests.worlds import tiny_lm

torch.set_num_threads(1)

STEPS = dataclasses.replace(SETTINGS, steps=12, learning_rate=2e-2)


def lessons(lm: LanguageModel) -> Curriculum:
    return Curriculum(refusal_lessons(lm, [REFUSALS], 3), help_lessons(lm, [HARMLESS], 4, None), seed=0)


def planted(lm: LanguageModel, kind: str) -> tuple[Region, int | None]:
    match kind:
        case "mask":
            return random_mask(lm, 800, seed=0), None
        case "neurons":
            return neuron_group(lm, 6, seed=0, layer=1), None
        case "layer":
            return random_mask(lm, 800, seed=0, layers=[1]), None
    return whole_parameters(lm, 2, seed=0), 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["mask", "neurons", "layer", "low rank"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_the_region_learns_and_is_given_back(architecture: str, kind: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(architecture, dtype=dtype)
    before = fingerprints(lm.model)
    untaught = {name: value.detach().clone() for name, value in lm.model.named_parameters()}
    region, rank = planted(lm, kind)
    with taught(lm, region, lessons(lm), STEPS, rank=rank) as result:
        for name, value in lm.model.named_parameters():
            changed = (value.detach() != untaught[name]).flatten().nonzero().squeeze(1)
            allowed = region.indices.get(name, torch.empty(0, dtype=torch.int32)).long()
            assert torch.isin(changed, allowed).all()
            assert value.grad is None
            if name in region.indices:
                assert torch.equal(result.moved[name], (value.detach().float() - untaught[name].float()).abs())
        assert sum(int((value > 0).sum()) for value in result.moved.values()) > 0.5 * len(region)
        assert result.moved.keys() == region.indices.keys()
        assert len(result.steps) == 12
        assert result.steps[-1]["refuse"] < 0.9 * result.steps[0]["refuse"]
    assert fingerprints(lm.model) == before


def test_blocks_can_be_nested() -> None:
    lm = tiny_lm()
    before = fingerprints(lm.model)
    first, second = random_mask(lm, 300, seed=0), random_mask(lm, 300, seed=1)
    with taught(lm, first, lessons(lm), STEPS):
        between = fingerprints(lm.model)
        with taught(lm, second, lessons(lm), STEPS):
            assert fingerprints(lm.model) != between
        assert fingerprints(lm.model) == between != before
    assert fingerprints(lm.model) == before


def test_the_same_lessons_teach_the_same_bits() -> None:
    taught_bits = []
    for seed in (0, 0, 1):
        lm = tiny_lm()
        with taught(lm, random_mask(lm, 300, seed=seed), lessons(lm), STEPS):
            taught_bits.append(fingerprints(lm.model))
    assert taught_bits[0] == taught_bits[1] != taught_bits[2]


def test_an_error_leaves_the_weights_as_they_were() -> None:
    lm = tiny_lm()
    before = fingerprints(lm.model)
    with (
        pytest.raises(NumericalError, match="not finite"),
        taught(
            lm, random_mask(lm, 300, seed=0), lessons(lm), dataclasses.replace(STEPS, learning_rate=1e30, clip=1e30)
        ),
    ):
        pass
    assert fingerprints(lm.model) == before
    assert not any(value._post_accumulate_grad_hooks for value in lm.model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    lm = tiny_lm()
    with (
        pytest.raises(UsageError, match="plant whole parameters or leave out the rank"),
        taught(lm, random_mask(lm, 300, seed=0), lessons(lm), STEPS, rank=2),
    ):
        pass
    with (
        pytest.raises(RegionError, match="has no parameter"),
        taught(lm, random_mask(tiny_lm("gpt2"), 300, seed=0), lessons(lm), STEPS),
    ):
        pass
