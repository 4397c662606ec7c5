"""Every parameter of every architecture is named once, with the right role and the right way round."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from ballast.models.parts import Part, part_map
from tests.models.world import ATTENTION, EXPERTS, GATED, LATENT, both
from tests.zoo import ARCHITECTURES, HIDDEN, tiny, tiny_on_meta

# Counted by hand from the definition of each architecture.
EXPECTED: dict[str, dict[str, int]] = {
    "llama": {**both(*ATTENTION, *GATED), "norm": 5, "embedding": 1, "lm_head": 1},
    "mistral": {**both(*ATTENTION, *GATED), "norm": 5, "embedding": 1, "lm_head": 1},
    "qwen2": {**both(*ATTENTION, *GATED), "bias": 6, "norm": 5, "embedding": 1},
    "qwen3": {**both(*ATTENTION, *GATED), "norm": 9, "embedding": 1, "lm_head": 1},
    "gemma3": {**both(*ATTENTION, *GATED), "norm": 13, "embedding": 1},
    "gpt2": {**both("qkv", "output", "up", "down"), "bias": 8, "norm": 10, "embedding": 1, "position_embedding": 1},
    "qwen3_moe": {
        **dict.fromkeys(ATTENTION, 3),
        **dict.fromkeys(GATED, 1),
        **both(*EXPERTS, "router"),
        "norm": 13,
        "embedding": 1,
        "lm_head": 1,
    },
    "mixtral": {**both(*ATTENTION, *EXPERTS, "router"), "norm": 5, "embedding": 1, "lm_head": 1},
    "gpt_oss": {
        **both(*ATTENTION, *EXPERTS, "router", "attention_sink"),
        "bias": 14,
        "norm": 5,
        "embedding": 1,
        "lm_head": 1,
    },
    "olmo2": {**both(*ATTENTION, *GATED), "norm": 9, "embedding": 1, "lm_head": 1},
    "phi3": {**both("qkv", "output", "gate_up", "down"), "norm": 5, "embedding": 1, "lm_head": 1},
    "gpt_neox": {**both("qkv", "output", "up", "down"), "bias": 8, "norm": 10, "embedding": 1, "lm_head": 1},
    "gemma2": {**both(*ATTENTION, *GATED), "norm": 9, "embedding": 1},
    "smollm3": {**both(*ATTENTION, *GATED), "norm": 5, "embedding": 1},
    "olmoe": {**both(*ATTENTION, *EXPERTS, "router"), "norm": 9, "embedding": 1, "lm_head": 1},
    "deepseek_v3": {
        **dict.fromkeys((*LATENT, "output"), 3),
        **dict.fromkeys(GATED, 1),
        **both(*EXPERTS, *(f"shared_experts.{role}" for role in GATED), "router"),
        "norm": 13,
        "embedding": 1,
        "lm_head": 1,
    },
}


def eligible_parts(model: PreTrainedModel, dimensions: int) -> list[Part]:
    return [part for part in part_map(model).eligible() if len(part.shape) == dimensions]


def owner_of(model: PreTrainedModel, part: Part) -> nn.Module:
    return model.get_submodule(part.name.rpartition(".")[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_one_part_of_the_expected_role(name: str) -> None:
    model = tiny(name)
    parts = part_map(model)
    assert [part.name for part in parts] == [parameter_name for parameter_name, _ in model.named_parameters()]
    assert sum(part.numel for part in parts) == model.num_parameters()
    assert Counter(part.role for part in parts) == EXPECTED[name]
    for part in parts:
        parameter = model.get_parameter(part.name)
        assert part.shape == tuple(parameter.shape)
        assert parts.by_name(part.name) is part
        assert part.eligible == (part.reason == "")
        in_block = part.role.removeprefix("shared_").removeprefix("experts.") in (
            *("qkv", "gate_up"),
            *ATTENTION,
            *LATENT,
            *GATED,
        )
        assert part.eligible == in_block
        assert (part.layer is not None) == (part.role not in ("embedding", "position_embedding", "lm_head")) or (
            part.role == "norm" and part.layer is None
        )
        if part.layer is not None:
            assert f".{part.layer}." in part.name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_coverage_counts_every_entry_once(name: str) -> None:
    model = tiny(name)
    parts = part_map(model)
    rows = parts.coverage()
    assert sum(row["parameters"] for row in rows) == model.num_parameters()
    assert sum(row["tensors"] for row in rows) == len(parts)
    assert sum(row["parameters"] for row in rows if row["eligible"]) == sum(part.numel for part in parts.eligible())
    assert set(parts.roles()) == {row["role"] for row in rows} == set(EXPECTED[name])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_meta_device_gives_the_same_map(name: str) -> None:
    model = tiny_on_meta(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert list(part_map(model)) == list(part_map(tiny(name)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_zeroing_one_output_neuron_of_a_matrix_changes_that_output_alone(name: str) -> None:
    model = tiny(name)
    parts = eligible_parts(model, dimensions=2)
    assert parts
    for part in parts:
        layer, weight = owner_of(model, part), model.get_parameter(part.name)
        assert part.output_dim is not None
        inputs = torch.randn(5, part.shape[1 - part.output_dim])
        neuron = part.shape[part.output_dim] - 1
        with torch.no_grad():
            before = layer(inputs)
            weight.select(part.output_dim, neuron).zero_()
            after = layer(inputs)
        assert before.shape[1] == part.shape[part.output_dim]
        assert (before != after).any(0).nonzero().flatten().tolist() == [neuron]


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_zeroing_one_output_neuron_of_an_expert_changes_that_output_of_its_tokens_alone(name: str) -> None:
    model = tiny(name)
    for part in [part for part in eligible_parts(model, dimensions=3) if part.role == "experts.down"]:
        experts, weight = owner_of(model, part), model.get_parameter(part.name)
        assert part.expert_dim == 0
        assert part.output_dim is not None
        tokens, routes, gains = torch.randn(6, HIDDEN), torch.tensor([[0], [1], [2], [3], [1], [0]]), torch.ones(6, 1)
        with torch.no_grad():
            before = experts(tokens, routes, gains)
            weight[1].select(part.output_dim - 1, 7).zero_()
            after = experts(tokens, routes, gains)
        assert (before != after).nonzero().tolist() == [[1, 7], [4, 7]]


@pytest.mark.parametrize(
    ("name", "orientation", "halves"),
    [
        ("qwen3_moe", "out_in", "contiguous"),
        ("mixtral", "out_in", "contiguous"),
        ("gpt_oss", "in_out", "interleaved"),
        ("phi3", "out_in", "contiguous"),
    ],
)
def test_a_gate_neuron_and_its_input_of_down_are_the_same_neuron(name: str, orientation: str, halves: str) -> None:
    """With gate j at zero the inner neuron j is silent, just as if `down` did not read it."""
    model, neuron = tiny(name), 5
    parts = part_map(model)
    fused = next(part for part in parts if part.role.endswith("gate_up"))
    down = next(part for part in parts if part.role.endswith("down") and part.layer == fused.layer)
    assert fused.orientation == down.orientation == orientation
    assert fused.halves == halves
    assert down.halves is None
    assert fused.output_dim is not None
    assert down.output_dim is not None
    gate = neuron if fused.halves == "contiguous" else 2 * neuron
    is_expert = fused.expert_dim is not None
    block = owner_of(model, fused) if is_expert else model.get_submodule(fused.name.rpartition(".gate_up")[0])
    tokens = torch.randn(6, HIDDEN)
    arguments = (tokens, torch.tensor([[0], [1], [2], [3], [1], [0]]), torch.ones(6, 1)) if is_expert else (tokens,)
    fused_weight, down_weight = model.get_parameter(fused.name), model.get_parameter(down.name)
    input_dim = down.output_dim - 1 if down.orientation == "in_out" else down.output_dim + 1
    with torch.no_grad():
        if name == "gpt_oss":
            model.get_parameter(f"{fused.name}_bias")[:, gate] = 0
        untouched, kept = block(*arguments), fused_weight.clone()
        fused_weight.select(fused.output_dim, gate).zero_()
        without_gate = block(*arguments)
        fused_weight.copy_(kept)
        down_weight.select(input_dim, neuron).zero_()
        without_input = block(*arguments)
    assert not torch.allclose(untouched, without_gate, atol=1e-4)
    torch.testing.assert_close(without_gate, without_input, atol=1e-6, rtol=1e-5)


def test_expert_orientation_is_found_without_a_declaration_when_widths_are_equal() -> None:
    for name, orientation in (("qwen3_moe", "out_in"), ("gpt_oss", "in_out")):
        model = tiny_on_meta(name)
        for module in model.modules():
            if hasattr(module, "is_transposed"):
                del module.is_transposed, module.is_concatenated
        found = {(part.role, part.orientation, part.halves) for part in part_map(model) if part.expert_dim == 0}
        assert found == {(role, orientation, None) for role in EXPERTS}


def test_a_wrong_declaration_of_orientation_makes_experts_unknown() -> None:
    model = tiny_on_meta("mixtral")
    for module in model.modules():
        if hasattr(module, "is_transposed"):
            module.is_transposed = True
    unknown = [part for part in part_map(model) if part.role == "unknown"]
    assert len(unknown) == 4
    assert not any(part.eligible for part in unknown)


def test_tied_head_is_counted_once_and_said_so() -> None:
    tied, untied = part_map(tiny("qwen2")), part_map(tiny("llama"))
    assert "lm_head" not in tied.roles()
    assert "tied" in tied.by_name("model.embed_tokens.weight").reason
    assert "tied" not in untied.by_name("model.embed_tokens.weight").reason
    assert untied.by_name("lm_head.weight").orientation == "out_in"
