"""Noise on a region: how large, where, and gone afterwards."""

from __future__ import annotations

import pytest
import torch

from ballast import locate
from ballast.errors import RegionError, UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.regions import Region
from ballast.regions.noise import noisy
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?"])


def region_of(lm: LanguageModel, fraction: float, seed: int = 0) -> Region:
    return locate(lm, PROMPTS, "random", seed=seed).select(fraction, scope="per_tensor")


def changes(lm: LanguageModel, region: Region, scale: float = 0.38, seed: int = 0) -> dict[str, torch.Tensor]:
    before = {name: value.detach().clone() for name, value in lm.model.named_parameters()}
    with noisy(lm, region, scale, seed):
        after = {name: value.detach().clone() for name, value in lm.model.named_parameters()}
    return {name: after[name].float() - before[name].float() for name in before}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_the_region_is_disturbed_and_only_meanwhile(name: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(name, dtype=dtype)
    region, bits = region_of(lm, 0.2), fingerprints(lm.model)
    found = changes(lm, region)
    assert fingerprints(lm.model) == bits
    for parameter, change in found.items():
        touched = change.flatten().nonzero().flatten()
        selected = region.indices.get(parameter, torch.zeros(0)).long()
        assert set(touched.tolist()) <= set(selected.tolist())
        assert len(touched) >= 0.9 * len(selected)  # in bfloat16 small noise on a large weight is rounded away
    with pytest.raises(ZeroDivisionError), noisy(lm, region):
        _ = 1 / 0
    assert fingerprints(lm.model) == bits


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_noise_has_the_scale_of_its_matrix(name: str) -> None:
    lm = tiny_lm(name)
    region = region_of(lm, 1.0)
    for scale in (0.1, 0.6):
        ratios = []
        for parameter, change in changes(lm, region, scale).items():
            part = lm.parts.by_name(parameter)
            if part.eligible and part.expert_dim is None:
                ratios.append(float(change.std() / lm.model.get_parameter(parameter).detach().std()))
            elif part.eligible and part.role == "experts.down":
                weight = lm.model.get_parameter(parameter).detach()
                ratios += [float(one.std() / mine.std()) for one, mine in zip(change, weight, strict=True)]
        assert ratios
        assert all(ratio == pytest.approx(scale, rel=0.1) for ratio in ratios)


def test_a_weight_gets_the_same_noise_in_every_region() -> None:
    lm = tiny_lm()
    small, large = region_of(lm, 0.1), region_of(lm, 0.3)
    assert small.intersection_size(large) == len(small)
    mine, theirs = changes(lm, small), changes(lm, large)
    for name, indices in small.indices.items():
        places = indices.long()
        assert torch.equal(mine[name].flatten()[places], theirs[name].flatten()[places])
    other = changes(lm, small, seed=1)
    assert not any(torch.equal(other[name], mine[name]) for name in small.indices)


def test_what_cannot_be_disturbed() -> None:
    lm = tiny_lm()
    region = region_of(lm, 0.1)
    with pytest.raises(UsageError, match="scale of the noise is 0"), noisy(lm, region, 0):
        pass
    with pytest.raises(RegionError, match="holds other values"), noisy(tiny_lm(seed=1), region):
        pass
