"""Where the entries of heads arrive, against rotations written by hand, and which norms are noticed."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config

from ballast.models.attention import Attention, observed_attention
from ballast.models.head_directions import Directions, observed_directions
from ballast.models.language_model import LanguageModel
from ballast.models.units import neuron_groups
from tests.zoo import ARCHITECTURES, tiny, tiny_tokenizer

torch.set_num_threads(1)

LENGTH = 9
NORMS = {"qwen3": "head", "gemma3": "head", "qwen3_moe": "head", "olmo2": "all heads", "olmoe": "all heads"}
KINDS = ("query", "key", "value")


def opened(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel(tiny(name, dtype=dtype), tiny_tokenizer(), name)


def directions(lm: LanguageModel) -> dict[tuple[int, str], Directions]:
    return observed_directions(lm, neuron_groups(lm, KINDS)[0], LENGTH)


def rotations(size: int, turned: int) -> torch.Tensor:
    """(T, d, d); [t, i] is entry i of the first `turned` turned with its partner half of them further."""
    rows = torch.eye(size).repeat(LENGTH, 1, 1)
    half = turned // 2
    for place in range(LENGTH):
        for first in range(half):
            angle = place * 10000 ** (-2 * first / turned)
            rows[place, first, first] = rows[place, first + half, first + half] = math.cos(angle)
            rows[place, first, first + half] = math.sin(angle)
            rows[place, first + half, first] = -math.sin(angle)
    return rows


@pytest.mark.parametrize(("name", "turned"), [("llama", 8), ("phi3", 8), ("gpt2", 0), ("gpt_neox", 2)])
def test_rotation_by_hand(name: str, turned: int) -> None:
    found = directions(opened(name))
    for layer in (0, 1):
        for kind in ("query", "key"):
            torch.testing.assert_close(found[layer, kind].unit, rotations(8, turned), rtol=0, atol=1e-5)
        assert torch.equal(found[layer, "value"].unit, torch.eye(8).repeat(LENGTH, 1, 1))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "deepseek_v3"])
def test_norms_and_parts(name: str) -> None:
    """A query is the sum of what its entries bring; what is normed together is noticed."""
    lm = opened(name)
    found = directions(lm)
    assert found.keys() == {(layer, kind) for layer in range(lm.model.config.num_hidden_layers) for kind in KINDS}
    seen: list[Attention] = []
    with torch.no_grad(), observed_attention(lm, seen.append):
        lm.model(input_ids=torch.randint(4, 200, (1, LENGTH), generator=torch.Generator().manual_seed(0)))
    for attention in seen:
        for kind in KINDS:
            one, values = found[attention.layer, kind], getattr(attention, kind)[0]
            assert one.orthogonal
            assert one.norm == ("none" if kind == "value" else NORMS.get(name, "none"))
            brought = torch.einsum("hte,tie->hti", values, one.unit).unsqueeze(-1) * one.unit
            torch.testing.assert_close(brought.sum(dim=2), values, rtol=1e-4, atol=1e-4)
            if one.norm == "head":  # the shares of the entries in the sum of squares of a head
                shares = (torch.einsum("hte,tie->hti", values, one.unit) / one.largest).square().sum(dim=-1)
                torch.testing.assert_close(shares, torch.ones_like(shares), rtol=1e-3, atol=0)


def test_a_norm_over_the_only_head_is_one_over_the_head() -> None:
    config = Olmo2Config(
        vocab_size=260,
        pad_token_id=0,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert directions(LanguageModel(model, tiny_tokenizer(), "one head"))[0, "query"].norm == "head"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "distinct"), [("llama", 1), ("qwen2", 1), ("gemma3", 2), ("gpt2", 0)])
def test_equal_directions_share_memory(name: str, distinct: int, dtype: torch.dtype) -> None:
    """One rotation for the whole model, two where layers of two kinds alternate; values are never rotated."""
    found = directions(opened(name, dtype))
    assert all(one.orthogonal for one in found.values())
    assert len({one.unit.data_ptr() for one in found.values()}) == distinct + 1


def test_nothing_is_left_behind() -> None:
    lm = opened("phi3")
    ids = torch.tensor([[40, 41, 42]])
    with torch.no_grad():
        before = lm.model(input_ids=ids).logits
        directions(lm)
        assert torch.equal(lm.model(input_ids=ids).logits, before)
    assert observed_directions(lm, [], LENGTH) == {}
