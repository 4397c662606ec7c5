"""LoRA in the place of full training: what is merged, what is kept beside it, what continues."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen2MoeConfig

from ballast.errors import UsageError
from ballast.models import LanguageModel, open_model
from ballast.models.fingerprint import fingerprints
from ballast.tune import Anchor, LoraSettings, finetune
from ballast.tune.finetune_log import Log
from ballast.tune.lora import adapted_modules
from tests.tune.finetune_world import SETTINGS, TASK, Stop, losses, region_of, stopping_at
from tests.tune.test_safety_preserving import bits, changed
from tests.worlds import tiny_lm
from tests.zoo import GROUPED, tiny_tokenizer

torch.set_num_threads(1)

LORA = LoraSettings(rank=2, alpha=8, dropout=0.1)
FAST = dataclasses.replace(SETTINGS, learning_rate=2e-2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_checkpoint_is_the_adapter_merged_by_peft(name: str, tmp_path: Path) -> None:
    lm = tiny_lm(name)
    before = fingerprints(lm.model)
    tuned = open_model(finetune(lm, TASK, protect=None, lora=LORA, out=tmp_path, settings=FAST))
    assert fingerprints(lm.model) == before
    assert losses(tmp_path)[-1] < 0.8 * losses(tmp_path)[0]
    twin = PeftModel.from_pretrained(copy.deepcopy(lm.model), str(tmp_path / "adapter")).merge_and_unload()
    moved = set()
    for key, value in twin.named_parameters():
        torch.testing.assert_close(tuned.model.get_parameter(key), value, rtol=1e-5, atol=1e-6)
        if not torch.equal(value, lm.model.get_parameter(key)):
            moved.add(key)
    linear = {part.name for part in lm.parts.eligible()}
    assert moved == linear


def test_a_region_keeps_its_bits_where_the_adapter_is_merged(tmp_path: Path) -> None:
    lm = tiny_lm(dtype=torch.bfloat16)
    region, before = region_of(lm), bits(lm.model)
    tuned = open_model(finetune(lm, TASK, protect=region, lora=LORA, out=tmp_path / "kept", settings=FAST))
    plain = open_model(finetune(lm, TASK, protect=None, lora=LORA, out=tmp_path / "plain", settings=FAST))
    assert tuned.model.dtype == torch.bfloat16
    assert changed(before, tuned.model, region)[0] == 0
    assert changed(before, plain.model, region)[0] > 0.5 * len(region)
    kept, unprotected = (tmp_path / folder / "adapter" / "adapter_model.safetensors" for folder in ("kept", "plain"))
    assert kept.read_bytes() == unprotected.read_bytes()


def test_continues_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()

    def run(folder: str) -> dict[str, str]:
        return fingerprints(
            open_model(finetune(lm, TASK, protect=None, lora=LORA, out=tmp_path / folder, settings=FAST)).model
        )

    with monkeypatch.context() as patched:
        patched.setattr(Log, "on_log", stopping_at(7))
        with pytest.raises(Stop):
            run("killed")
    assert run("killed") == run("whole")


def test_the_seed_decides_the_factors(tmp_path: Path) -> None:
    lm = tiny_lm()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))  # what was drawn before must not matter
        settings = dataclasses.replace(FAST, steps=3, seed=seed)
        out = finetune(lm, TASK, protect=None, lora=LORA, out=tmp_path / str(len(found)), settings=settings)
        found.append(fingerprints(open_model(out).model))
    assert found[0] == found[1] != found[2]


def test_what_does_not_fit(tmp_path: Path) -> None:
    lm: LanguageModel = tiny_lm()
    region = region_of(lm)
    with pytest.raises(UsageError, match="do not move while training"):
        finetune(lm, TASK, protect=None, lora=LORA, anchor=Anchor.of_region(region, 1.0), out=tmp_path)
    with pytest.raises(UsageError, match="do not move while training"):
        finetune(lm, TASK, protect=region, lora=LORA, out=tmp_path, settings=dataclasses.replace(FAST, drifting=0.5))
    for setting in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}):
        with pytest.raises(UsageError, match="The LoRA setting"):
            dataclasses.replace(LORA, **setting)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_without_peft_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UsageError, match="pip install 'ballast-llm"):
        finetune(tiny_lm(), TASK, protect=None, lora=LORA, out=tmp_path, settings=SETTINGS)
    assert not list(tmp_path.iterdir())


def test_gates_and_routers_are_not_adapted(tmp_path: Path) -> None:
    """A gate of shared experts is a linear layer, but no projection, so it could not be merged."""
    config = Qwen2MoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    config.shared_expert_intermediate_size = 16
    lm = LanguageModel(AutoModelForCausalLM.from_config(config), tiny_tokenizer(), "qwen2_moe")
    modules = adapted_modules(lm)
    assert "model.layers.0.mlp.shared_expert.gate_proj" in modules
    assert "model.layers.0.mlp.shared_expert_gate" not in modules
    settings = dataclasses.replace(FAST, steps=1)
    assert finetune(lm, TASK, protect=None, lora=LORA, out=tmp_path, settings=settings).exists()
