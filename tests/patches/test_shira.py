"""A patch as an adapter, opened by PEFT itself."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from ballast.errors import ModelError, PatchError, RunError
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.patches import AdapterInfo, Entries, Patch, export_adapter
from tests.patches.world import ORIGIN, patch_of
from tests.worlds import tiny_lm
from tests.zoo import tiny, tiny_on_meta, tiny_tokenizer

torch.set_num_threads(1)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS = torch.arange(4, 24).unsqueeze(0)
DOWN = "model.layers.0.mlp.down_proj.weight"
SMALL, ANY = 0.05, None  # a change relative to the weight, as tuning makes them, or any new value


def linear_patch(
    name: str, dtype: torch.dtype, *, size: float | None, share: float = 0.02, only: str = ""
) -> tuple[Patch, PreTrainedModel]:
    """A patch of the linear layers and the model that it leads to; each matrix has a share of its own."""
    model = tiny(name, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for place, (path, module) in enumerate(model.named_modules()):
            if isinstance(module, nn.Linear) and only in path and path != "lm_head":
                weight = module.weight
                chosen = torch.rand(weight.shape, generator=generator) < share * (1 + place % 3)
                drawn = torch.randn(int(chosen.sum()), generator=generator)
                moved = drawn if size is None else weight[chosen].float() * (1 + size * drawn)
                weight[chosen] = moved.to(dtype)
    return Patch.between(tiny(name, dtype=dtype), model, base=ORIGIN), model


def single(model: PreTrainedModel, name: str) -> Patch:
    """A patch of the first entry of one tensor."""
    previous = model.get_parameter(name).detach().reshape(-1)[:1].clone()
    return Patch.from_values({name: (torch.tensor([0]), previous + 1, previous)}, model, base=ORIGIN)


def opened(name: str, dtype: torch.dtype, folder: Path, **options: Any) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers is about to give up
        found: PeftModel = PeftModel.from_pretrained(tiny(name, dtype=dtype), folder, **options)
    return found.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse invariant checks")
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("size", [SMALL, ANY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["llama", "phi3", "deepseek_v3"])
def test_peft_computes_what_the_patched_model_does(
    name: str, dtype: torch.dtype, size: float | None, tmp_path: Path
) -> None:
    patch, changed = linear_patch(name, dtype, size=size)
    lm = tiny_lm(name, dtype=dtype)
    before = fingerprints(lm.model)
    info = export_adapter(lm, patch, tmp_path / "adapter")
    assert fingerprints(lm.model) == before
    adapter = opened(name, dtype, tmp_path / "adapter")
    expected = logits(changed)
    assert (logits(tiny(name, dtype=dtype)) - expected).abs().max() > 0.01
    if dtype == torch.float32:
        torch.testing.assert_close(logits(adapter), expected, rtol=1e-4, atol=1e-4)
    if info.rounded == 0:
        assert torch.equal(logits(adapter), expected)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse invariant checks")
        merged: Any = adapter.merge_and_unload()
    differing = 0
    for key, parameter in merged.named_parameters():
        mine, theirs = parameter.detach(), changed.get_parameter(key).detach()
        differing += int((mine != theirs).sum())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    assert differing == info.rounded
    assert (info.rounded == 0) == (dtype != torch.float32 or size == SMALL)


def test_layout(tmp_path: Path) -> None:
    patch, changed = linear_patch("llama", torch.bfloat16, size=ANY)
    info = export_adapter(tiny_lm(dtype=torch.bfloat16), patch, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    names = {f"base_model.model.{name.removesuffix('weight')}shira_": name for name in patch.entries}
    assert tensors.keys() == {f"{stem}{end}" for stem in names for end in ("indices", "weight")}
    ranks = []
    for stem, name in names.items():
        indices, differences = tensors[f"{stem}indices"], tensors[f"{stem}weight"]
        rows, columns = changed.get_parameter(name).shape
        assert differences.dtype == torch.float32
        assert indices.dtype == torch.int32
        assert len(set(map(tuple, indices.T.tolist()))) == len(differences) == config["r"] * (rows + columns)
        dense = torch.zeros(rows, columns)
        dense[indices[0].long(), indices[1].long()] = differences
        change = (
            changed.get_parameter(name).detach().float()
            - tiny("llama", dtype=torch.bfloat16).get_parameter(name).detach().float()
        )
        assert torch.equal(dense, change)
        ranks.append(math.ceil(len(patch.entries[name].indices) / (rows + columns)))
    assert config["r"] == info.rank == max(ranks)
    assert len(set(ranks)) > 1
    places = sum(len(tensor) for key, tensor in tensors.items() if key.endswith("weight"))
    assert info == AdapterInfo(max(ranks), len(names), patch.info().entries, places - patch.info().entries, 0)
    assert config["target_modules"] == sorted(name.removesuffix(".weight") for name in patch.entries)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}


@pytest.mark.parametrize(("files", "base"), [((), "owner/tiny"), ((Path("model.safetensors"),), None)])
def test_a_local_path_is_not_published(files: tuple[Path, ...], base: str | None, tmp_path: Path) -> None:
    lm = LanguageModel(tiny("llama"), tiny_tokenizer(), "owner/tiny", "abc", files)
    export_adapter(lm, linear_patch("llama", torch.float32, size=SMALL)[0], tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (base, "abc")


class TestRefused:
    def test_what_is_not_a_linear_layer(self, tmp_path: Path) -> None:
        with pytest.raises(
            PatchError, match=r"embed_tokens\.weight \(weight of Embedding\), .*norm\.weight \(weight of "
        ):
            export_adapter(tiny_lm(), patch_of(), tmp_path / "adapter")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("architecture", "name", "reason"),
        [
            ("qwen2", "model.layers.1.self_attn.q_proj.bias", "bias of Linear"),
            ("qwen2", "model.embed_tokens.weight", "weight of Embedding"),  # tied to the output head
            ("qwen3_moe", "model.layers.1.mlp.experts.down_proj", "down_proj of Qwen3MoeExperts"),
            ("gpt2", "transformer.h.0.mlp.c_fc.weight", "weight of Conv1D"),
        ],
    )
    def test_by_name_and_reason(self, architecture: str, name: str, reason: str, tmp_path: Path) -> None:
        lm = tiny_lm(architecture)
        with pytest.raises(PatchError, match=rf"not {re.escape(name)} \({reason}\); write a checkpoint"):
            export_adapter(lm, single(lm.model, name), tmp_path / "adapter")

    def test_a_weight_that_two_layers_share(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        lm.model.model.layers[1].mlp.down_proj.weight = lm.model.get_parameter(DOWN)
        with pytest.raises(PatchError, match="shared by several layers"):
            export_adapter(lm, single(lm.model, DOWN), tmp_path / "adapter")

    def test_more_entries_than_places(self, tmp_path: Path) -> None:
        patch, _ = linear_patch("llama", torch.float32, size=ANY, share=1.0, only="k_proj")
        with pytest.raises(PatchError, match=r"\(r = 11\) is larger than .*k_proj\.weight"):  # 16 x 32 of 48 r
            export_adapter(tiny_lm(), patch, tmp_path / "adapter")

    def test_another_model(self, tmp_path: Path) -> None:
        patch, _ = linear_patch("llama", torch.float32, size=SMALL)
        with pytest.raises(PatchError, match="is not that of owner/tiny"):
            export_adapter(tiny_lm(seed=3), patch, tmp_path / "adapter")
        with pytest.raises(PatchError, match="no tensor"):
            export_adapter(tiny_lm("gpt2"), patch, tmp_path / "adapter")
        on_meta = LanguageModel(tiny_on_meta("llama"), tiny_tokenizer(), "owner/tiny")
        with pytest.raises(ModelError, match="not in memory"):
            export_adapter(on_meta, patch, tmp_path / "adapter")
        assert list(tmp_path.iterdir()) == []

    def test_altered_values(self, tmp_path: Path) -> None:
        patch, _ = linear_patch("llama", torch.float32, size=SMALL)
        part = patch.entries[DOWN]
        entries = {**patch.entries, DOWN: Entries(part.indices, part.values + 1, part.previous)}
        with pytest.raises(PatchError, match=r"does not make .* what it promises"):
            export_adapter(tiny_lm(), dataclasses.replace(patch, entries=entries), tmp_path / "adapter")

    def test_folders(self, tmp_path: Path) -> None:
        patch, _ = linear_patch("llama", torch.float32, size=SMALL)
        (tmp_path / "note").write_text("keep")
        with pytest.raises(PatchError, match="is not empty; give a new folder for the adapter"):
            export_adapter(tiny_lm(), patch, tmp_path)
        with pytest.raises(RunError, match="Cannot write"):
            export_adapter(tiny_lm(), patch, tmp_path / "note" / "adapter")
        assert [entry.name for entry in tmp_path.iterdir()] == ["note"]
