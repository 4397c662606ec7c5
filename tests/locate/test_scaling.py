"""Scaled layers against copies of the model whose weights were multiplied, on every architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GraniteConfig

from ballast.errors import ModelError
from ballast.locate.layers.gap_curve import Window
from ballast.locate.layers.scaling import residual_sublayers, scaled_contributions, scaled_outputs
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.models.tree import block_modules
from tests.worlds import tiny_lm
from tests.zoo import ARCHITECTURES, GROUPED, tiny_tokenizer

torch.set_num_threads(1)

IDS = list(range(4, 30))
FACTOR = 1.3
MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss", "olmoe", "deepseek_v3")
POST_NORMS = ("gemma2", "gemma3", "olmo2")


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([IDS, IDS[::-1]])).logits
    return found


def windows(lm: LanguageModel) -> Iterable[Window]:
    layers = len(block_modules(lm.model))
    return (Window(0, 1), Window(layers - 1, layers), Window(0, layers))


def multiplied(lm: LanguageModel, window: Window, acts: Callable[[str], bool]) -> torch.Tensor:
    """Logits of a copy with the parameters of these layers multiplied that `acts` names."""
    twin = copy.deepcopy(lm.model)
    with torch.no_grad():
        for part in lm.parts:
            if part.layer in range(*window) and acts(part.name):
                twin.get_parameter(part.name).mul_(FACTOR)
    return logits(twin)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scaled_outputs_are_scaled_weights(name: str) -> None:
    """All eligible weights and no bias; the model is the same afterwards, bit by bit."""
    lm = tiny_lm(name)
    eligible = {part.name for part in lm.parts.eligible()}
    before, plain, own = fingerprints(lm.model), logits(lm.model), dict(lm.model.named_parameters())
    for window in windows(lm):
        with scaled_outputs(lm, window, FACTOR):
            found = logits(lm.model)
        torch.testing.assert_close(found, multiplied(lm, window, eligible.__contains__), rtol=1e-4, atol=1e-4)
        assert (found - plain).abs().max() > 1e-2
    assert torch.equal(logits(lm.model), plain)
    assert fingerprints(lm.model) == before
    assert all(value is own[key] for key, value in lm.model.named_parameters())


def adds_to_the_residual(name: str, lm: LanguageModel) -> Callable[[str], bool]:
    """The parameters in which the contributions of a layer are linear."""
    if name == "olmo2":
        return lambda key: "post_attention_layernorm" in key or "post_feedforward_layernorm" in key
    last = ("output", "down", "experts.down", "shared_experts.down")
    linear = {part.name.removesuffix(".weight") for part in lm.parts if part.role in last}
    biases = {f"{key}{ending}" for key in linear for ending in (".weight", ".bias", "", "_bias")}
    return biases.__contains__


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.startswith("gemma")])
def test_scaled_contributions_are_scaled_last_projections(name: str) -> None:
    """Attention and feed-forward part add multiples of their last projection, or of the norm behind it."""
    lm = tiny_lm(name)
    plain, sublayers = logits(lm.model), residual_sublayers(lm, IDS)
    for window in windows(lm):
        with scaled_contributions(sublayers, window, FACTOR):
            found = logits(lm.model)
        expected = multiplied(lm, window, adds_to_the_residual(name, lm))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (found - plain).abs().max() > 1e-2
    assert torch.equal(logits(lm.model), plain)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_contributions_go_through_the_norms_behind_them(name: str) -> None:
    """Gemma's norms multiply by 1 + weight."""
    lm = tiny_lm(name)
    with scaled_contributions(residual_sublayers(lm, IDS), Window(1, 2), FACTOR):
        found = logits(lm.model)
    twin = copy.deepcopy(lm.model)
    with torch.no_grad():
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm"):
            weight = block_modules(twin)[1].get_parameter(f"{norm}.weight")
            weight.copy_(FACTOR * (1 + weight) - 1)
    torch.testing.assert_close(found, logits(twin), rtol=1e-4, atol=1e-4)


def test_a_residual_multiplier_does_not_hide_the_sublayers() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GraniteConfig(**GROUPED, residual_multiplier=0.4)).eval()
    lm = LanguageModel(model, tiny_tokenizer(), "granite")
    for block, pair in zip(block_modules(model), residual_sublayers(lm, IDS), strict=True):
        assert [name for name, module in block.named_children() if module in pair] == ["self_attn", "mlp"]


def test_a_block_that_is_no_sum_of_two_modules() -> None:
    lm = tiny_lm()
    noise = torch.randn(32, generator=torch.Generator().manual_seed(0))
    hook = block_modules(lm.model)[1].register_forward_hook(lambda *seen: seen[-1] + noise)
    with pytest.raises(ModelError, match=r"layer 1 of LlamaForCausalLM .* use mode=output"):
        residual_sublayers(lm, IDS)
    hook.remove()
    assert len(residual_sublayers(lm, IDS)) == 2


@pytest.mark.parametrize("name", MIXTURES)
def test_an_error_in_the_experts_leaves_the_weights(name: str) -> None:
    lm = tiny_lm(name)
    own, before = dict(lm.model.named_parameters()), fingerprints(lm.model)
    stacked = next(part for part in lm.parts.eligible() if part.expert_dim is not None)
    experts = lm.model.get_submodule(stacked.name.rpartition(".")[0])

    def fail(*_: object) -> None:
        assert experts.get_parameter("down_proj") is not own[f"{stacked.name.rpartition('.')[0]}.down_proj"]
        raise MemoryError

    with scaled_outputs(lm, Window(0, 3), FACTOR):
        hook = experts.register_forward_pre_hook(fail)  # behind the one that scales
        with pytest.raises(MemoryError):
            logits(lm.model)
        hook.remove()
        assert all(value is own[key] for key, value in lm.model.named_parameters())
    assert fingerprints(lm.model) == before


def test_bfloat16_moves_no_more_than_its_rounding() -> None:
    lm = tiny_lm("qwen2", dtype=torch.bfloat16)
    eligible = {part.name for part in lm.parts.eligible()}
    with scaled_outputs(lm, Window(0, 2), 1.25):
        found = logits(lm.model).float()
    twin = copy.deepcopy(lm.model)
    with torch.no_grad():
        for key, value in twin.named_parameters():
            if key in eligible:
                value.mul_(1.25)
    error = (found - logits(twin).float()).norm() / (found - logits(lm.model).float()).norm()
    assert error < 0.1
