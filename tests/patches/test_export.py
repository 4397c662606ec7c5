"""A patched model as a plain checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ballast.errors import PatchError, RunError
from ballast.models import LanguageModel, open_model
from ballast.models.fingerprint import fingerprints
from ballast.patches import export
from tests.patches.test_patch import changed_copy, patch_of
from tests.zoo import tiny, tiny_tokenizer


def language_model(name: str = "llama") -> LanguageModel:
    return LanguageModel(tiny(name), tiny_tokenizer(), "owner/tiny")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3_moe"])
def test_transformers_opens_it(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tiny(name, dtype=dtype).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lm, patch = open_model(tmp_path / "base", device="cpu"), patch_of(name, dtype)
    assert lm.model.dtype == dtype
    before, ids = fingerprints(lm.model), torch.arange(4, 24).unsqueeze(0)
    with torch.no_grad(), patch.applied(lm.model):
        expected = lm.model(ids).logits
    assert export(lm, patch, tmp_path / "model") == tmp_path / "model"
    assert fingerprints(lm.model) == before
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert fingerprints(reopened) == fingerprints(changed_copy(name, dtype))
    with torch.no_grad():
        assert torch.equal(reopened(ids).logits, expected)
        assert not torch.equal(lm.model(ids).logits, expected)
    text = "Hello there"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text).input_ids == lm.tokenizer(text).input_ids
    assert not list((tmp_path / "model").glob("*.bin"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "model"]


def test_patch_that_is_applied_already(tmp_path: Path) -> None:
    lm, patch = language_model(), patch_of()
    patch.apply(lm.model)
    export(lm, patch, tmp_path / "model")
    assert fingerprints(open_model(tmp_path / "model", device="cpu").model) == fingerprints(lm.model)


def test_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "note").write_text("keep")
    with pytest.raises(PatchError, match="not empty"):
        export(language_model(), patch_of(), tmp_path / "model")
    with pytest.raises(PatchError, match="not empty"):
        export(language_model(), patch_of(), tmp_path / "model" / "note")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["model", "note"]


def test_empty_folder_and_leftovers(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "stale").write_text("")
    export(language_model(), patch_of(), tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "stale").exists()


def test_wrong_base_writes_nothing(tmp_path: Path) -> None:
    lm = LanguageModel(tiny("llama", seed=5), tiny_tokenizer(), "owner/other")
    with pytest.raises(PatchError, match="not that of owner/tiny"):
        export(lm, patch_of(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    lm = language_model()
    before = fingerprints(lm.model)

    def fail(folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise error

    monkeypatch.setattr(lm.model, "save_pretrained", fail)
    with pytest.raises(RunError, match="No space left"):
        export(lm, patch_of(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    assert fingerprints(lm.model) == before


def test_sampling_settings_without_sampling(tmp_path: Path) -> None:
    """Many published checkpoints name a temperature although they decode greedily."""
    base = tiny("llama")
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    settings = tmp_path / "base" / "generation_config.json"
    added = {"max_length": 4096, "temperature": 0.6, "top_p": 0.9}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **added}))
    lm = open_model(tmp_path / "base", device="cpu")
    assert lm.model.generation_config.temperature == 0.6
    export(lm, patch_of(), tmp_path / "model")
    assert "temperature" not in json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert lm.model.generation_config.temperature == 0.6


def test_without_a_patch(tmp_path: Path) -> None:
    lm = language_model()
    export(lm, None, tmp_path / "model")
    assert fingerprints(open_model(tmp_path / "model", device="cpu").model) == fingerprints(lm.model)
