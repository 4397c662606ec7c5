"""Cosines by hand and against whole matrices; which modules come first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import UsageError
from ballast.locate import locate
from ballast.locate.checkpoints import base_checkpoint
from ballast.locate.checkpoints.adapter import LowRank
from ballast.locate.checkpoints.directions import matrices_of
from ballast.locate.engine import eligible_parameters
from ballast.locate.safe_lora import SafeLora, alignment_cosine, rounding
from ballast.models import LanguageModel
from tests.locate.adapters import adapted, rewrite
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?"])
UP = "model.layers.0.mlp.up_proj.weight"


class TestAlignmentCosine:
    def test_by_hand(self) -> None:
        """V V^T = diag(4, 1, 0); of dW = (1, 2, 0) e^T it leaves (4, 2, 0), with cosine 8 / sqrt(20 * 5)."""
        changed = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        update = LowRank(torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([[3.0, 4.0]]))
        assert alignment_cosine(changed, update) == pytest.approx(8 / 10)
        assert alignment_cosine(changed, update, least=0.0) == pytest.approx(1)  # all of it lies in the column space
        assert alignment_cosine(changed, update, least=1.5) == pytest.approx(1 / math.sqrt(5))

    def test_an_update_across_all_directions_of_alignment(self) -> None:
        changed = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        update = LowRank(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0, 0.0]]))
        assert alignment_cosine(changed, update) == alignment_cosine(changed, update, least=0.1) == 0

    def test_nothing_to_compare(self) -> None:
        changed, update = torch.ones(3, 2), LowRank(torch.ones(3, 1), torch.ones(1, 2))
        assert alignment_cosine(torch.zeros(3, 2), update) is None
        assert alignment_cosine(changed, LowRank(torch.zeros(3, 1), torch.ones(1, 2))) is None
        assert alignment_cosine(changed, update, least=100.0) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_is_a_bound_and_not_far_off(dtype: torch.dtype) -> None:
    exact = torch.randn(300, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = float(torch.linalg.matrix_norm(exact.to(dtype).double() - exact, 2))
    assert noise < rounding(exact, torch.finfo(dtype).eps) < 10 * noise


def aligned_and_base(
    monkeypatch: pytest.MonkeyPatch, architecture: str = "llama"
) -> tuple[LanguageModel, LanguageModel]:
    base = tiny_lm(architecture, seed=1)
    monkeypatch.setattr(base_checkpoint, "open_model", lambda *_, **__: base)
    return tiny_lm(architecture), base


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_those_of_whole_matrices(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C is formed as written, and the update is what PEFT adds when it merges."""
    lm, base = aligned_and_base(monkeypatch, architecture)
    tuned = adapted(lm, tmp_path)
    scores = locate(lm, PROMPTS, "safe_lora", base="base", adapter=str(tmp_path))
    views = [matrices_of(one, eligible_parameters(one)) for one in (lm, base, tuned)]
    cosines = {}
    for matrix, score in matrices_of(lm, scores.values).items():
        weight, before, after = (view[matrix].double() for view in views)
        change, update = weight - before, after - weight
        if not update.any():
            assert not score.any()
            continue
        projected = (change @ change.T / change.norm()) @ update
        cosines[str(matrix)] = torch.nn.functional.cosine_similarity(
            projected.flatten(), update.flatten(), dim=0
        ).item()
        torch.testing.assert_close(score, torch.full_like(score, 1 - cosines[str(matrix)]), rtol=0, atol=1e-5)
    assert scores.settings["cosines"] == pytest.approx(cosines, abs=1e-5)


def test_the_module_that_leaves_alignment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alignment changed layer 0's up projection along one axis; fine-tuning moves it across, the others along."""
    lm, base = aligned_and_base(monkeypatch)
    adapted(lm, tmp_path, target_modules=["up_proj", "down_proj"])
    away, along, across = torch.zeros(48), torch.zeros(48, 4), torch.zeros(48, 4)
    away[0] = along[0, 0] = across[1, 0] = 1
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            parameter.copy_(lm.model.get_parameter(name))
            if "up_proj" in name or "down_proj" in name:
                parameter[0] -= 1
    places = [f"model.layers.{layer}.mlp.{name}.lora_B.weight" for layer in (0, 1) for name in ("up_proj", "down_proj")]
    rewrite(tmp_path, {place: along[: 48 if "up" in place else 32] for place in places})
    rewrite(tmp_path, {places[0]: across})
    for exact in (False, True):
        scores = locate(lm, PROMPTS, "safe_lora", base="base", adapter=str(tmp_path), exact_projector=exact)
        expected = {place.replace("lora_B.", ""): 0.0 if place == places[0] else 1.0 for place in places}
        assert scores.settings["cosines"] == pytest.approx(expected, abs=1e-6)
        assert scores.select(0.01).indices.keys() == {UP}


def test_modules_without_a_cosine_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, base = aligned_and_base(monkeypatch)
    adapted(lm, tmp_path, target_modules=["up_proj"])
    with torch.no_grad():
        base.model.get_parameter(UP).copy_(lm.model.get_parameter(UP))
    scores = locate(lm, PROMPTS, "safe_lora", base="base", adapter=str(tmp_path))
    assert scores.settings["undefined"] == [UP]
    assert scores.settings["unchanged"] == {"up": 1}
    assert [name for name, value in scores.values.items() if value.any()] == ["model.layers.1.mlp.up_proj.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "b"}, "give base and adapter"),
        ({"adapter": "a"}, "give base and adapter"),
        ({"adapter": "a", "base": "b", "exact_projector": "yes"}, "exact_projector is 'yes'; give true or false"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SafeLora(**settings)
