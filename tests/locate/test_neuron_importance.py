"""The importance of every kind of neuron on every architecture: zero the neuron and look at what changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, Qwen2MoeConfig

from ballast.errors import ModelError
from ballast.locate.importance import neuron_attention
from ballast.locate.importance.neuron_importance import Importances
from ballast.models import LanguageModel
from ballast.models.attention import Attention, observed_attention
from ballast.models.units import NEURON_KINDS, UnitGroup
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered
from tests.worlds import tiny_lm
from tests.zoo import ARCHITECTURES, tiny_tokenizer

torch.set_num_threads(1)

HEADLESS = ("deepseek_v3",)  # its heads come out of latent vectors
HEAD_NORMED = ("qwen3", "gemma3", "qwen3_moe")  # their norms compute in fp32, whatever the model
ALL_NORMED = ("olmo2", "olmoe")
LENGTH = 70  # longer than the sliding windows of the zoo
SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
CASES = [
    (name, kind)
    for name in ARCHITECTURES
    for kind in NEURON_KINDS
    if name not in HEADLESS or kind in ("feed_forward", "output")
]


def row(length: int, seed: int = 0) -> Rendered:
    ids = torch.randint(4, 200, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Rendered(ids, length)


@cache
def shared_lm(name: str) -> LanguageModel:
    lm = tiny_lm(name, dtype=torch.float64)
    if lm.model._can_set_experts_implementation():
        lm.model.set_experts_implementation("eager")
    return lm


@contextmanager
def without(lm: LanguageModel, group: UnitGroup, unit: int) -> Iterator[None]:
    """The model with one neuron zeroed: its lines, and the bias entries of those that are rows."""
    parameters = dict(lm.model.named_parameters())
    places = group.entries(torch.tensor([unit]))
    for line in group.lines:
        name = line.part.name
        bias = f"{name.removesuffix('.weight')}{'.bias' if name.endswith('.weight') else '_bias'}"
        if line.outputs and bias in parameters:
            offset = 0 if group.expert is None else group.expert * parameters[bias].shape[-1]
            found = line.positions[unit] + offset
            places[bias] = torch.cat([places.get(bias, found), found]).unique()
    kept = {name: parameters[name].detach().view(-1)[entries].clone() for name, entries in places.items()}
    with torch.no_grad():
        for name, entries in places.items():
            parameters[name].view(-1)[entries] = 0
        yield
        for name, entries in places.items():
            parameters[name].view(-1)[entries] = kept[name]


def module_of(lm: LanguageModel, group: UnitGroup) -> nn.Module:
    """The sublayer that the neurons belong to."""
    path = group.lines[0].part.name.split(".")
    depth = next(number for number, name in enumerate(path) if name.isdigit()) + 2
    return lm.model.get_submodule(".".join(path[:depth]))


@torch.no_grad()
def sublayer_output(lm: LanguageModel, group: UnitGroup, ids: torch.Tensor) -> torch.Tensor:
    """(1, T, hidden) before any norm that follows the sublayer."""
    seen: list[torch.Tensor] = []
    hook = module_of(lm, group).register_forward_hook(
        lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    lm.model(input_ids=ids)
    hook.remove()
    return seen[0].reshape(1, ids.shape[1], -1)


@torch.no_grad()
def looks(lm: LanguageModel, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """(1, H, T, T) where the heads of a layer look, in fp64."""
    seen: list[Attention] = []
    with observed_attention(lm, seen.append):
        lm.model(input_ids=ids)
    (one,) = [attention for attention in seen if attention.layer == layer]
    keys = one.key.repeat_interleave(one.group, dim=1)
    return one.probabilities(one.query @ keys.transpose(2, 3) * one.scaling)


@contextmanager
def without_behind_the_norm(lm: LanguageModel, group: UnitGroup, unit: int) -> Iterator[None]:
    """The model with one entry of all heads of a token zeroed after the norm over them."""
    norm = module_of(lm, group).get_submodule("q_norm" if group.kind == "query" else "k_norm")

    def zeroed(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        assert output.shape[-1] == group.size
        return output * (torch.arange(group.size) != unit)

    hook = norm.register_forward_hook(zeroed)
    yield
    hook.remove()


def brute_force(lm: LanguageModel, group: UnitGroup, unit: int, ids: torch.Tensor, held: bool) -> float:
    removed = without_behind_the_norm if held else without
    if group.kind in ("query", "key"):
        before = looks(lm, group.layer, ids)
        with removed(lm, group, unit):
            return float((looks(lm, group.layer, ids) - before).norm())
    before = sublayer_output(lm, group, ids)
    with without(lm, group, unit):
        return float((sublayer_output(lm, group, ids) - before).norm())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_importance_is_the_change_without_the_neuron(name: str, kind: str) -> None:
    lm = shared_lm(name)
    prompt = row(LENGTH)
    importances = Importances(lm, [kind], LENGTH)
    tables = importances.of(collate([prompt], lm.pad_id))
    attending = kind in ("query", "key")
    tolerance = 1e-5 if attending and name in HEAD_NORMED else 1e-9
    for group, table in zip(importances.groups, tables, strict=True):
        for unit in {0, 11, group.size // 2, group.size - 1} if group.layer == 1 else ():
            expected = brute_force(lm, group, unit, torch.tensor([prompt.ids]), attending and name in ALL_NORMED)
            assert float(table[0, unit]) == pytest.approx(expected, rel=tolerance), (group.kind, group.expert, unit)
            assert expected > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, side: Literal["left", "right"]) -> None:
    lm = tiny_lm(name)
    rows = [row(LENGTH, 1), row(20, 2), row(1, 3)]
    importances = Importances(lm, NEURON_KINDS, LENGTH)
    together = importances.of(collate(rows, lm.pad_id, side))
    for number, one in enumerate(rows):
        alone = importances.of(collate([one], lm.pad_id))
        for group, found, expected in zip(importances.groups, together, alone, strict=True):
            difference = (found[number] - expected[0]).abs().max()
            assert difference <= 1e-3 * expected.max() + 1e-7, (group.kind, group.layer)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt_oss", "gpt2"])
def test_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All queries at once and one after the other, with the keys that each sees, give the same sums."""
    lm = shared_lm(name)
    batch = collate([row(LENGTH)], lm.pad_id)
    importances = Importances(lm, ["query", "key"], LENGTH)
    found = []
    for block in (1, 10**9):
        monkeypatch.setattr(neuron_attention, "CPU_BLOCK", block)
        found.append(importances.of(batch))
    for single, whole in zip(*found, strict=True):
        torch.testing.assert_close(single, whole, rtol=1e-9, atol=0)


def test_half_precision_is_close() -> None:
    """Sums are fp32 whatever the model's dtype."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        lm = tiny_lm("qwen3", dtype=dtype)
        found.append(Importances(lm, NEURON_KINDS, LENGTH).of(collate([row(LENGTH)], lm.pad_id)))
    for exact, rounded in zip(*found, strict=True):
        assert exact.dtype == rounded.dtype == torch.float32
        assert float((exact - rounded).norm() / exact.norm()) < 0.05


def test_the_share_of_an_expert_counts() -> None:
    """The router's weight is part of the importance, and an expert that no token reached has none."""
    lm = shared_lm("mixtral")
    importances = Importances(lm, ["feed_forward"], 1)
    tables = importances.of(collate([row(1)], lm.pad_id))
    reached = [bool(table.any()) for group, table in zip(importances.groups, tables, strict=True) if group.layer == 0]
    assert sorted(reached) == [False, False, True, True]


class TestWhatCannotBeScored:
    def test_heads_from_latent_vectors(self) -> None:
        importances = Importances(tiny_lm("deepseek_v3"), ["query", "output"], 4)
        assert {group.kind for group in importances.groups} == {"output"}
        assert importances.notes == {"left_out": [f"layer {n}: no query neurons can be told apart" for n in range(3)]}

    @pytest.mark.parametrize("name", ALL_NORMED)
    def test_a_norm_over_all_heads(self, name: str) -> None:
        notes = Importances(tiny_lm(name), NEURON_KINDS, 4).notes
        assert notes == {
            "approximated": [
                f"layer {layer}: {kind} neurons, the norm behind them is held as it is"
                for layer in range(2)
                for kind in ("query", "key")
            ]
        }

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_norm_that_mixes_the_entries_of_a_head(self, dtype: torch.dtype) -> None:
        """Cohere's optional norm subtracts the mean of a head, which hardly changes the angles of 32 entries."""
        config = CohereConfig(use_qk_norm=True, **{**SIZES, "num_attention_heads": 1})
        lm = LanguageModel(AutoModelForCausalLM.from_config(config).to(dtype).eval(), tiny_tokenizer(), "cohere")
        importances = Importances(lm, NEURON_KINDS, 4)
        assert {group.kind for group in importances.groups} == {"feed_forward", "value", "output"}
        assert importances.notes == {
            "left_out": [f"layer 0: {kind} neurons are left out, for a norm mixes them" for kind in ("query", "key")]
        }

    def test_shared_experts_behind_a_gate(self) -> None:
        """Qwen2's mixture multiplies what the shared experts give by a gate of its own."""
        experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        config = Qwen2MoeConfig(**SIZES, **experts, shared_expert_intermediate_size=16)
        lm = LanguageModel(AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer(), "qwen2_moe")
        importances = Importances(lm, ["feed_forward"], 4)
        assert {group.kind for group in importances.groups} == {"experts.feed_forward", "shared_experts.feed_forward"}
        assert importances.notes == {
            "approximated": [
                "layer 0: shared_experts.feed_forward neurons, scored before the gate of the shared experts"
            ]
        }

    @pytest.mark.parametrize("fused", [False, True])
    def test_a_model_that_hides_its_attention(self, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = tiny_lm("phi3" if fused else "llama")
        monkeypatch.setattr(type(lm.model), "_can_set_attn_implementation", classmethod(lambda _: False))
        importances = Importances(lm, NEURON_KINDS, 4)
        assert {group.kind for group in importances.groups} == {"feed_forward", "output"}
        assert all(table.all() for table in importances.of(collate([row(4)], lm.pad_id)))
        assert any("query" in sentence for sentence in importances.notes["left_out"])
        with pytest.raises(ModelError, match=r"No neurons can be scored .*choose other kinds"):
            Importances(lm, ["query"], 4)
