"""Models that are not as expected: what is unknown, left out or refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MambaConfig,
    Qwen2MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from ballast.errors import ModelError
from ballast.models.parts import part_map
from tests.models.world import ATTENTION, EXPERTS, GATED, both, two_layers
from tests.zoo import HIDDEN, INNER, tiny


def test_renamed_projection_is_unknown_and_listed() -> None:
    model = tiny("llama")
    for block in model.model.layers:
        block.self_attn.mystery = block.self_attn.q_proj
        del block.self_attn.q_proj
    parts = part_map(model)
    part = parts.by_name("model.layers.1.self_attn.mystery.weight")
    assert (part.role, part.layer, part.eligible, part.orientation) == ("unknown", 1, False, "none")
    assert "'mystery'" in part.reason
    row = next(row for row in parts.coverage() if row["role"] == "unknown")
    assert row == {
        "role": "unknown",
        "tensors": 2,
        "parameters": 2 * HIDDEN * HIDDEN,
        "eligible": False,
        "reason": part.reason,
    }
    assert "query" not in parts.roles()


@pytest.mark.parametrize(
    ("setting", "value", "lost"),
    [
        ("num_key_value_heads", 4, {"key", "value"}),
        ("head_dim", 4, {"query", "key", "value", "output"}),
        ("intermediate_size", INNER + 1, {"gate", "up", "down"}),
    ],
)
def test_a_shape_that_contradicts_the_config_is_unknown(setting: str, value: int, lost: set[str]) -> None:
    model = tiny("llama")
    before = set(part_map(model).roles())
    setattr(model.config, setting, value)
    parts = part_map(model)
    assert before - set(parts.roles()) == lost
    assert all("shape" in part.reason for part in parts if part.role == "unknown")


def test_a_projection_of_an_unknown_module_is_unknown() -> None:
    class Strange(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

    model = tiny("llama")
    mlp = model.model.layers[0].mlp
    mlp.up_proj = Strange(mlp.up_proj.weight)
    part = part_map(model).by_name("model.layers.0.mlp.up_proj.weight")
    assert (part.role, part.eligible) == ("unknown", False)
    assert "Strange" in part.reason


def test_shared_experts_and_their_gate() -> None:
    widths = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40}
    with torch.device("meta"):
        parts = part_map(AutoModelForCausalLM.from_config(Qwen2MoeConfig(**two_layers(**widths))))
    counts = Counter(part.role for part in parts)
    assert {role: counts[role] for role in counts if "." in role} == both(
        *EXPERTS, "shared_experts.gate", "shared_experts.up", "shared_experts.down"
    )
    assert counts["router"] == 4  # one per block for the routed experts, one for the shared
    assert counts["unknown"] == 0


@pytest.mark.parametrize("rank", [16, None])
def test_latent_attention_with_and_without_a_latent_query_and_three_shared_experts(rank: int | None) -> None:
    settings = two_layers(
        num_key_value_heads=4,
        n_routed_experts=4,
        n_shared_experts=3,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        q_lora_rank=rank,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
    )
    with torch.device("meta"):
        parts = part_map(AutoModelForCausalLM.from_config(DeepseekV3Config(**settings)))
    queries = {"q_a_proj": "query_down", "q_b_proj": "query_up"} if rank else {"q_proj": "query"}
    found = {part.name.split(".")[-2]: part.role for part in parts if part.layer == 1 and "_proj" in part.name}
    expected = {**queries, "kv_a_proj_with_mqa": "key_value_down", "kv_b_proj": "key_value_up", "o_proj": "output"}
    assert {name: found[name] for name in expected} == expected
    assert not any(part.role == "unknown" for part in parts)
    assert parts.by_name("model.layers.1.mlp.shared_experts.up_proj.weight").eligible


def test_only_the_text_tower_of_a_multimodal_model_is_eligible() -> None:
    """The vision tower has as many blocks as the text decoder, so their number alone does not tell them apart."""
    vision = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    text = two_layers(head_dim=16)
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        )
    parts = part_map(model)
    assert Counter(part.role for part in parts.eligible()) == both(*ATTENTION, *GATED)
    assert all(".language_model.layers." in part.name for part in parts.eligible())
    elsewhere = [part for part in parts if "language_model" not in part.name and part.role != "lm_head"]
    assert elsewhere
    assert all("not in the text decoder" in part.reason for part in elsewhere)


def test_a_model_without_any_known_matrix_is_refused() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            MambaConfig(vocab_size=64, hidden_size=HIDDEN, num_hidden_layers=2, state_size=4)
        )
    with pytest.raises(ModelError, match="MambaForCausalLM has no weight matrix of a known role"):
        part_map(model)


def test_a_model_without_a_single_list_of_blocks_is_refused() -> None:
    with torch.device("meta"):
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=HIDDEN, d_ff=INNER, num_layers=2, num_heads=4)
        )
    with pytest.raises(ModelError, match="no single list of 2 decoder blocks"):
        part_map(model)
