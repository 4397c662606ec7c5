"""The update read from an adapter's files is the one PEFT makes when it merges them; everything else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import ModelError
from ballast.locate.checkpoints.adapter import read_adapter
from ballast.locate.checkpoints.directions import matrices_of
from ballast.locate.engine import eligible_parameters
from ballast.models import LanguageModel
from tests.locate.adapters import adapted, reconfigure, rewrite
from tests.worlds import tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

QUERY = "model.layers.0.self_attn.q_proj"


def check_updates(lm: LanguageModel, merged: LanguageModel, folder: Path) -> set[str]:
    """Compare every update with what merging changed; returns the names of the parameters that it changed."""
    factors = read_adapter(lm, folder).factors
    before, after = (matrices_of(one, eligible_parameters(one)) for one in (lm, merged))
    for matrix, weight in before.items():
        moved = after[matrix] - weight
        assert moved.any() == (matrix in factors), matrix
        if matrix in factors:
            torch.testing.assert_close(factors[matrix].left @ factors[matrix].right, moved, rtol=1e-4, atol=2e-6)
    return {matrix.name for matrix in factors}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_updates_are_those_of_peft(architecture: str, tmp_path: Path) -> None:
    lm = tiny_lm(architecture)
    stacked = {part.name for part in lm.parts.eligible() if part.expert_dim is not None}
    targets = sorted({f"experts.{name.rpartition('.')[2]}" for name in stacked})
    merged = adapted(lm, tmp_path, target_parameters=targets or None)
    changed = check_updates(lm, merged, tmp_path)
    assert changed >= stacked
    if not stacked:  # with experts, PEFT takes the dense layers out of "all-linear"
        assert changed == {part.name for part in lm.parts.eligible()}


SCALES: dict[str, dict[str, Any]] = {
    "rank by module": {"rank_pattern": {"k_proj": 2, "layers.1.mlp.up_proj": 7, "^model.layers.0.mlp.down_proj": 1}},
    "alpha by module": {"alpha_pattern": {".*layers.1.*_proj": 40, "q_proj": 1}},  # the first counts
    "both": {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 3}},
    "root of the rank": {"use_rslora": True, "rank_pattern": {"k_proj": 9}},
    "some modules": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
    "fractional alpha": {"lora_alpha": 2.5},
}


@pytest.mark.parametrize("settings", SCALES.values(), ids=SCALES)
def test_ranks_and_scales_are_those_of_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    lm = tiny_lm()
    check_updates(lm, adapted(lm, tmp_path, **settings), tmp_path)


def test_the_flag_for_transposed_weights_changes_nothing(tmp_path: Path) -> None:
    """PEFT sets it by the kind of layer, and so does the part map; a wrong flag in the file does no harm."""
    lm = tiny_lm("gpt2")
    merged = adapted(lm, tmp_path)
    reconfigure(tmp_path, fan_in_fan_out=False)
    check_updates(lm, merged, tmp_path)


def test_what_is_no_update_of_a_projection_is_listed(tmp_path: Path) -> None:
    lm = tiny_lm("mixtral")
    adapted(lm, tmp_path, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
    rewrite(tmp_path, {f"{QUERY}.lora_B.bias": torch.ones(32)})
    rewrite(tmp_path, {f"model.layers.0.mlp.gate.lora_{half}.weight": torch.ones(4, 4) for half in "AB"})
    assert read_adapter(lm, tmp_path).left_out == {
        "model.embed_tokens.lora_embedding_A": "token embedding",
        "model.embed_tokens.lora_embedding_B": "token embedding",
        "lm_head.weight": "not a low-rank update",
        f"{QUERY}.lora_B.bias": "bias",
        "model.layers.0.mlp.gate": "router",
    }


def test_a_tied_head_is_listed(tmp_path: Path) -> None:
    lm = tiny_lm("qwen2")  # its head is the embedding
    adapted(lm, tmp_path, target_modules=["q_proj"])
    rewrite(tmp_path, {f"lm_head.lora_{half}.weight": torch.ones(4, 4) for half in "AB"})
    assert read_adapter(lm, tmp_path).left_out.keys() == {"lm_head"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapted(tiny_lm(), tmp_path, target_modules=["q_proj", "k_proj"])
    return tmp_path


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"peft_type": "IA3"}, "adapter of type IA3; only LORA can be read"),
            ({"use_dora": True}, r"is not B A alone \(use_dora\); merge it with PEFT"),
            ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
            ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
            ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
            ({"r": 5}, r"has factors of shapes .* for .*_proj, which do not fit its weights"),
            ({"r": 0}, r"is damaged \(r:"),
            ({"lora_alpha": "much"}, r"is damaged \(lora_alpha:"),
            ({"rank_pattern": {"(": 3}}, r"is damaged \(rank_pattern:.*no regular expression"),
        ],
    )
    def test_configs(self, folder: Path, changes: dict[str, Any], message: str) -> None:
        reconfigure(folder, **changes)
        with pytest.raises(ModelError, match=message):
            read_adapter(tiny_lm(), folder)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({f"{QUERY}.lora_B.weight": None}, "do not fit its weights"),
            ({f"{QUERY}.lora_A.weight": torch.ones(4, 31)}, "do not fit its weights"),
            ({f"{QUERY}.lora_magnitude_vector": torch.ones(32)}, "which plain LoRA has not"),
        ],
    )
    def test_tensors(self, folder: Path, changes: dict[str, torch.Tensor | None], message: str) -> None:
        rewrite(folder, changes)
        with pytest.raises(ModelError, match=message):
            read_adapter(tiny_lm(), folder)

    def test_another_type_has_other_settings(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20}')
        with pytest.raises(ModelError, match="is a PEFT adapter of type PREFIX_TUNING; only LORA can be read"):
            read_adapter(tiny_lm(), folder)

    def test_another_model(self, folder: Path) -> None:
        with pytest.raises(ModelError, match=r"adapts model\.layers\.0\.\S+, which gpt_neox does not have"):
            read_adapter(tiny_lm("gpt_neox"), folder)
        with pytest.raises(ModelError, match=r"which do not fit its weights; it is damaged or for another model"):
            read_adapter(tiny_lm("qwen3"), folder)  # the same names, wider heads

    def test_no_projection(self, tmp_path: Path) -> None:
        adapted(tiny_lm(), tmp_path, target_modules=["lm_head"])
        with pytest.raises(ModelError, match=r"adapts no projection in a decoder block \(but lm_head\)"):
            read_adapter(tiny_lm(), tmp_path)

    def test_files(self, folder: Path) -> None:
        weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
        kept = weights.read_bytes()
        weights.write_bytes(kept[:100])
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors is damaged"):
            read_adapter(tiny_lm(), folder)
        weights.rename(folder / "adapter_model.bin")
        with pytest.raises(ModelError, match="save the adapter as safetensors, not pickled"):
            read_adapter(tiny_lm(), folder)
        config.write_text("{")
        with pytest.raises(ModelError, match=r"adapter_config\.json is damaged \(the file: Invalid JSON"):
            read_adapter(tiny_lm(), folder)
        config.unlink()
        with pytest.raises(ModelError, match="give the folder of a PEFT LoRA adapter"):
            read_adapter(tiny_lm(), folder)

    @pytest.mark.parametrize("version", ["0.18.1", ""])
    def test_experts_of_an_older_peft(self, tmp_path: Path, version: str) -> None:
        lm = tiny_lm("mixtral")
        adapted(lm, tmp_path, target_modules=[], target_parameters=["experts.down_proj"])
        reconfigure(tmp_path, peft_version=version)
        with pytest.raises(ModelError, match=r"saved by a PEFT before 0\.19"):
            read_adapter(lm, tmp_path)


def test_names_in_the_files_are_not_followed(folder: Path) -> None:
    plain = read_adapter(tiny_lm(), folder)
    reconfigure(folder, base_model_name_or_path="/nowhere/at/all", auto_mapping={"parent_library": "os"})
    found = read_adapter(tiny_lm(), folder)
    assert found.trained_on == "/nowhere/at/all"
    assert found.fingerprint == plain.fingerprint
    rewrite(folder, {f"{QUERY}.lora_A.weight": torch.ones(4, 32)})
    assert read_adapter(tiny_lm(), folder).fingerprint != plain.fingerprint
