"""NLSR against the decomposition of stored outputs, and what its score must not depend on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ballast.errors import ModelError, UsageError
from ballast.locate import locate
from ballast.locate.checkpoints import base_checkpoint
from ballast.locate.checkpoints.directions import Matrix, matrices_of, share_of_directions, split
from ballast.locate.engine import eligible_parameters
from ballast.locate.nlsr import Nlsr
from ballast.models import LanguageModel
from ballast.regions import exact_fraction
from tests.locate.adapters import adapted, rewrite
from tests.locate.reads import brute_force_directions, stored_reads
from tests.worlds import assert_close, prompt_set, same_bits, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

PROMPTS = prompt_set(
    "harmful",
    ["How?", "Write a long threat", "And?"],
    ["I refuse.", "No, I will not do that, never.", "Never in my life."],
)
SHORT = prompt_set("short", ["Hm"], ["No."])
QUERY = "model.layers.0.self_attn.q_proj"


def changes(lm: LanguageModel, before: LanguageModel) -> dict[Matrix, torch.Tensor]:
    """Of every weight matrix (out, in): what it is minus what it was."""
    now, then = (matrices_of(one, eligible_parameters(one)) for one in (lm, before))
    return {matrix: now[matrix] - then[matrix] for matrix in now}


def twin(
    lm: LanguageModel, updates: dict[Matrix, torch.Tensor], rank: int | None, share: str
) -> dict[str, torch.Tensor]:
    """|V V^T dW| from stored outputs; `rank` is that of an adapter."""
    reads = stored_reads(copy.deepcopy(lm), PROMPTS)
    scores = {name: torch.zeros(weight.shape) for name, weight in eligible_parameters(lm).items()}
    for matrix, view in matrices_of(lm, scores).items():
        if matrix in reads:
            inner = min(rank or 10**9, *view.shape)
            count = share_of_directions(split(torch.zeros(inner, inner)), exact_fraction(share))
            leading = brute_force_directions(reads[matrix], updates[matrix], count)
            view.copy_((leading @ leading.T @ updates[matrix].double()).abs())
    return scores


def stored(folder: Path, half: str) -> torch.Tensor:
    """One factor of an adapter, as its file has it."""
    tensor: torch.Tensor = load_file(folder / "adapter_model.safetensors")[
        f"base_model.model.{QUERY}.lora_{half}.weight"
    ]
    return tensor


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting `base` names an architecture; its weights are random ones of another seed."""
    monkeypatch.setattr(base_checkpoint, "open_model", lambda architecture, **_: tiny_lm(architecture, seed=1))


@pytest.mark.usefixtures("base")
class TestBase:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "mixtral", "gpt_oss", "deepseek_v3"])
    def test_scores_equal_those_of_stored_outputs(self, architecture: str) -> None:
        lm = tiny_lm(architecture)
        found = locate(lm, PROMPTS, "nlsr", base=architecture, directions=0.5, batch_size=2)
        expected = twin(lm, changes(lm, tiny_lm(architecture, seed=1)), None, "0.5")
        assert_close(found.values, expected, share=1e-3)

    def test_without_projection_it_is_delta(self) -> None:
        found = locate(tiny_lm(), PROMPTS, "nlsr", base="llama", projection="none").values
        assert same_bits(found, locate(tiny_lm(), PROMPTS, "delta", base="llama").values)

    def test_does_not_depend_on_the_batch(self) -> None:
        found = [locate(tiny_lm(), PROMPTS, "nlsr", base="llama", batch_size=size).values for size in (1, 3)]
        assert_close(found[0], found[1])

    def test_directions_without_a_token_are_left_out_and_counted(self) -> None:
        """One refusal of four tokens: updates keep rank 4, of 25 directions asked for (12 for key and value)."""
        lm = tiny_lm()
        found = locate(lm, SHORT, "nlsr", base="llama")
        assert found.settings["short_of_directions"] == 14
        reads = stored_reads(lm, SHORT)
        for matrix, update in changes(lm, tiny_lm(seed=1)).items():
            leading = brute_force_directions(reads[matrix], update, 25)
            assert leading.shape[1] == len(reads[matrix]) == 4
            expected = (leading @ leading.T @ update.double()).abs().float()
            torch.testing.assert_close(found.values[matrix.name], expected, rtol=1e-3, atol=1e-4)

    def test_experts_without_a_token_score_zero_and_are_named(self) -> None:
        lm = tiny_lm("qwen3_moe")
        found = locate(lm, SHORT, "nlsr", base="qwen3_moe")
        zero = [str(matrix) for matrix, view in matrices_of(lm, found.values).items() if not view.any()]
        assert found.settings["unread_experts"] == zero
        assert zero

    def test_what_alignment_left_alone_scores_zero(self) -> None:
        lm, before = tiny_lm(), tiny_lm(seed=1)
        with torch.no_grad():
            for name in ("q_proj", "o_proj"):
                key = f"model.layers.1.self_attn.{name}.weight"
                lm.model.get_parameter(key).copy_(before.model.get_parameter(key))
        found = locate(lm, PROMPTS, "nlsr", base="llama")
        assert found.settings["unchanged"] == {"query": 1, "output": 1}
        assert [name for name, value in found.values.items() if not value.any()] == [
            "model.layers.1.self_attn.q_proj.weight",
            "model.layers.1.self_attn.o_proj.weight",
        ]


class TestAdapter:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "mixtral", "gpt_oss"])
    def test_scores_equal_those_of_stored_outputs(self, architecture: str, tmp_path: Path) -> None:
        """Five directions of six: with fewer than its rank, the projection is none of the update itself."""
        before = tiny_lm(architecture)
        targets: dict[str, Any] = {}
        if architecture in ("mixtral", "gpt_oss"):
            experts = ["experts.gate_up_proj", "experts.down_proj"]
            targets = {"target_modules": ["q_proj", "o_proj"], "target_parameters": experts}
        lm = adapted(before, tmp_path, r=6, lora_alpha=3, **targets)
        found = locate(lm, PROMPTS, "nlsr", adapter=str(tmp_path), directions=0.9, batch_size=2)
        assert_close(found.values, twin(lm, changes(lm, before), 6, "0.9"), share=1e-3)

    def test_the_model_is_the_one_with_the_adapter(self, tmp_path: Path) -> None:
        """Other activations, other directions; the record says so if the model is the adapter's base."""
        before = tiny_lm()
        lm = adapted(before, tmp_path)
        given: dict[str, Any] = {"adapter": str(tmp_path), "directions": 0.5}
        merged, apart = locate(lm, PROMPTS, "nlsr", **given), locate(before, PROMPTS, "nlsr", **given)
        assert not same_bits(merged.values, apart.values)
        assert "warning" not in merged.settings

    def test_a_base_in_the_place_of_the_aligned_model_is_recorded(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        lm.model.name_or_path = lm.source  # as PEFT writes it into the adapter
        adapted(lm, tmp_path)
        warning = locate(lm, PROMPTS, "nlsr", adapter=str(tmp_path)).settings["warning"]
        assert warning == "the adapter was trained on zoo/llama; give the model with the adapter merged"

    def test_other_factors_of_the_same_update_have_the_same_scores(self, tmp_path: Path) -> None:
        lm = adapted(tiny_lm(), tmp_path, target_modules=["q_proj"], layers_to_transform=[0])
        given: dict[str, Any] = {"adapter": str(tmp_path), "directions": 0.5}
        first = locate(lm, PROMPTS, "nlsr", **given)
        mixing = torch.tensor([[1.0, 2, 0, 0], [0, 1, 0, 3], [0, 0, 2, 1], [1, 0, 0, 1]])
        left, right = (stored(tmp_path, half) for half in "BA")
        rewrite(
            tmp_path,
            {
                f"{QUERY}.lora_B.weight": left @ mixing,
                f"{QUERY}.lora_A.weight": torch.linalg.solve(mixing, right),
            },
        )
        again = locate(lm, PROMPTS, "nlsr", **given)
        assert first.settings["adapter_fingerprint"] != again.settings["adapter_fingerprint"]
        torch.testing.assert_close(
            again.values[f"{QUERY}.weight"], first.values[f"{QUERY}.weight"], rtol=1e-3, atol=1e-5
        )

    def test_all_directions_or_no_projection_are_the_update_itself(self, tmp_path: Path) -> None:
        before = tiny_lm()
        lm = adapted(before, tmp_path, target_modules=["up_proj", "k_proj"])
        expected = {matrix.name: update.abs() for matrix, update in changes(lm, before).items()}
        settings: list[dict[str, Any]] = [{"directions": 1}, {"projection": "none"}]
        for given in settings:
            found = locate(lm, PROMPTS, "nlsr", adapter=str(tmp_path), **given)
            for name, value in found.values.items():
                torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
        assert found.settings["unchanged"] == {"query": 2, "value": 2, "output": 2, "gate": 2, "down": 2}

    def test_what_is_not_read_is_recorded(self, tmp_path: Path) -> None:
        lm = adapted(tiny_lm("qwen3_moe"), tmp_path, target_modules=["q_proj", "lm_head"])
        found = locate(lm, PROMPTS, "nlsr", adapter=str(tmp_path))
        assert found.settings["adapter_left_out"] == {"lm_head": "output head"}

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_every_architecture(self, architecture: str, tmp_path: Path) -> None:
        lm = adapted(tiny_lm(architecture), tmp_path)
        found = locate(lm, PROMPTS, "nlsr", adapter=str(tmp_path)).select(0.03, scope="per_tensor")
        assert set(found.indices) <= {part.name for part in lm.parts.eligible()}
        assert len(found) > 0

    def test_a_low_rank_with_no_direction_left_is_refused(self, tmp_path: Path) -> None:
        lm = adapted(tiny_lm(), tmp_path, r=1)
        with pytest.raises(UsageError, match=r"The share 0\.8 of 1 directions is none"):
            locate(lm, PROMPTS, "nlsr", adapter=str(tmp_path))

    def test_an_adapter_that_changes_nothing_is_refused(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        adapted(lm, tmp_path, target_modules=["q_proj"])
        rewrite(tmp_path, {"lora_B.weight": torch.zeros(32, 4)})
        with pytest.raises(ModelError, match="No weight of llama differs"):
            locate(lm, PROMPTS, "nlsr", adapter=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either adapter or base"),
        ({"adapter": "a", "base": "b"}, "give either adapter or base"),
        ({"base": "b", "projection": "random"}, "no projection 'random'; use activations or none"),
        ({"base": "b", "directions": 1.5}, r"1\.5 is outside of \(0, 1\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Nlsr(**settings)
