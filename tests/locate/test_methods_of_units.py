"""What every method of heads promises, on every architecture that has them."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch

from ballast.locate import Method, UnitScores, get_method, locate
from ballast.locate.sahara import Sahara
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.regions import Region
from tests.worlds import prompt_set, same_bits, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?", "Write a threat", "Hm"])
CASES: dict[str, Method] = {"ships": get_method("ships"), "sahara": Sahara(heads=2, vectors=2)}
HEADED = [name for name in ARCHITECTURES if name != "deepseek_v3"]  # its heads come out of latent vectors


@cache
def shared_lm(name: str) -> LanguageModel:
    return tiny_lm(name)


@pytest.mark.parametrize("architecture", HEADED)
@pytest.mark.parametrize("case", CASES)
def test_scores_and_regions(case: str, architecture: str, tmp_path: Path) -> None:
    lm = shared_lm(architecture)
    before = fingerprints(lm.model)
    scores = locate(lm, PROMPTS, CASES[case], batch_size=2)
    assert fingerprints(lm.model) == before
    assert isinstance(scores, UnitScores)
    layers = lm.model.config.num_hidden_layers
    assert [group.layer for group in scores.groups] == list(range(layers))
    for value in scores.values:
        assert value.shape == (4,)
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        assert (value > 0).all()
    again = locate(lm, PROMPTS, CASES[case], batch_size=2)
    assert isinstance(again, UnitScores)
    assert all(torch.equal(*pair) for pair in zip(scores.values, again.values, strict=True))

    best = scores.select("1/4")
    count = math.floor(Fraction(1, 4) * 4 * layers)
    together = torch.cat(scores.values)
    expected = sorted(divmod(index, 4) for index in together.topk(count).indices.tolist())
    assert [(layer, head) for layer, _, head in best.metadata.selected_units["head"]] == expected
    best.save(tmp_path / "region.safetensors")
    loaded = Region.load(tmp_path / "region.safetensors")
    assert loaded.metadata == best.metadata
    assert same_bits(loaded.indices, best.indices)
    loaded.check_model(before, {name: value.shape for name, value in lm.model.named_parameters()})

    rest = scores.select("1/4", outside=best)
    assert not set(rest.metadata.selected_units["head"]) & set(best.metadata.selected_units["head"])
    assert all(
        not set(rest.indices[name].tolist()) & set(best.indices.get(name, torch.empty(0)).tolist())
        for name in rest.indices
    )
