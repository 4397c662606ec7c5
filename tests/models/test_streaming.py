"""Streamed models: what is in memory when, that they compute the same bits, and what is said if they cannot."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ballast.errors import ModelError
from ballast.models import LanguageModel, open_model
from ballast.models.cache import cache_folder
from ballast.models.tree import block_modules
from tests.models.streams import both, saved
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

IDS = torch.arange(4, 30).view(2, 13)


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = lm.model(IDS, use_cache=False).logits
    return found


def in_memory(lm: LanguageModel) -> set[str]:
    return {name for name, parameter in lm.model.named_parameters() if not parameter.is_meta}


def of_blocks(lm: LanguageModel) -> set[str]:
    return {part.name for part in lm.parts if part.layer is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_model(architecture: str, tmp_path: Path) -> None:
    whole, streamed = both(architecture, tmp_path)
    assert torch.equal(logits(streamed), logits(whole))
    everything = set(dict(whole.model.named_parameters()))
    assert in_memory(streamed) == everything - of_blocks(whole)
    assert list(streamed.parts) == list(whole.parts)
    for name, parameter in whole.model.named_parameters():
        read = streamed.weight(name)
        assert torch.equal(read, parameter)
        assert (read.dtype, read.requires_grad) == (parameter.dtype, False)
        assert torch.equal(whole.weight(name), parameter)
    assert streamed.model.training is False
    assert streamed.identity() == whole.identity()


def test_fingerprints_are_read_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    whole, streamed = both("llama", tmp_path)
    found = streamed.fingerprints()
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "another"))
    assert found == whole.fingerprints()
    streamed.model.get_parameter("model.norm.weight").data = torch.zeros(32)  # data_ptr changes: not remembered
    changed = streamed.fingerprints()
    assert {name for name in found if found[name] != changed[name]} == {"model.norm.weight"}


@pytest.mark.parametrize(("asked", "kept"), [("float32", torch.float32), ("auto", torch.bfloat16)])
def test_dtypes(asked: str, kept: torch.dtype, tmp_path: Path) -> None:
    saved("mixtral", tmp_path, torch.bfloat16)
    whole, streamed = (open_model(tmp_path, dtype=asked, device="cpu", stream=stream) for stream in (False, True))
    assert {streamed.weight(part.name).dtype for part in streamed.parts} == {kept}
    assert torch.equal(logits(streamed), logits(whole))


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    _, streamed = both("qwen2", tmp_path)
    assert streamed.model.lm_head.weight is streamed.model.model.embed_tokens.weight
    assert not streamed.model.lm_head.weight.is_meta


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_one_block_is_in_memory_at_a_time(architecture: str, tmp_path: Path) -> None:
    _, lm = both(architecture, tmp_path)
    blocks = block_modules(lm.model)
    always = in_memory(lm)
    seen: list[set[str]] = []
    for block in blocks:
        first, *_ = block.children()
        first.register_forward_pre_hook(lambda *_: seen.append(in_memory(lm) - always))
    logits(lm)
    assert seen == [{part.name for part in lm.parts if part.layer == layer} for layer in range(len(blocks))]
    assert in_memory(lm) == always


def test_weights_are_dropped_when_a_block_fails(tmp_path: Path) -> None:
    _, lm = both("llama", tmp_path)
    always = in_memory(lm)

    def fail(*_: Any) -> None:
        raise MemoryError

    hook = block_modules(lm.model)[1].get_submodule("self_attn").register_forward_hook(fail)
    with pytest.raises(MemoryError):
        logits(lm)
    hook.remove()
    assert in_memory(lm) == always
    assert torch.isfinite(logits(lm)).all()


def test_no_other_hand_is_on_the_modules(tmp_path: Path) -> None:
    _, lm = both("mixtral", tmp_path)
    for module in lm.model.modules():
        assert isinstance(module, nn.Module)
        assert "forward" not in vars(module)
        assert not hasattr(module, "_hf_hook")


def test_merged_experts_lie_in_the_cache_as_long_as_the_model_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    lm = open_model(saved("mixtral", tmp_path / "mixtral"), device="cpu", stream=True)
    (folder,) = cache_folder().glob("streamed-*")
    stacked = {part.name for part in lm.parts if part.expert_dim is not None}
    assert {path.stem for path in folder.iterdir()} == stacked
    del lm
    gc.collect()
    assert not folder.exists()


class TestRefused:
    def test_pickled_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
        saved("llama", tmp_path / "llama")
        for file in (tmp_path / "llama").glob("*.safetensors*"):
            file.unlink()
        torch.save({}, tmp_path / "llama" / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"Cannot open the model.*safetensors"):
            open_model(tmp_path / "llama", allow_pickle=True, stream=True)
        assert not list(cache_folder().glob("streamed-*"))

    def test_a_missing_weight(self, tmp_path: Path) -> None:
        lost = "model.layers.1.mlp.up_proj.weight"
        edit(saved("llama", tmp_path), lost, None)
        with pytest.raises(ModelError, match=r"Cannot stream .*open it without"):
            open_model(tmp_path, device="cpu", stream=True)
        with pytest.raises(ModelError, match=rf"lacks 1 tensors \({lost}\)"):
            open_model(tmp_path, device="cpu")

    def test_a_weight_of_another_shape(self, tmp_path: Path) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        edit(saved("llama", tmp_path), name, torch.zeros(3, 5))
        with pytest.raises(ModelError, match=rf"{name} is \(3, 5\) in the checkpoint and \(48, 32\) by its config"):
            open_model(tmp_path, device="cpu", stream=True)


def edit(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace a tensor of a sharded checkpoint, or take it away."""
    index_file = folder / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    file = folder / index["weight_map"][name]
    tensors = load_file(file)
    if tensor is None:
        del tensors[name], index["weight_map"][name]
    else:
        tensors[name] = tensor
    save_file(tensors, file, {"format": "pt"})
    index_file.write_text(json.dumps(index))
