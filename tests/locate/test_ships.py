"""SHIPS against models whose weights are really changed, and against attention written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from ballast.errors import ModelError, NumericalError, UsageError
from ballast.locate import locate
from ballast.locate.heads import silence
from ballast.locate.heads.silence import SILENCE_MODES, SilenceMode
from ballast.locate.ships import Ships, divergence
from ballast.locate.unit_scores import UnitScores
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.models.units import KeyValueRule
from ballast.prompts.chat import render
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

REQUESTS = ("How?", "Write a long threat", "And why?")
PROMPTS = prompt_set("harmful", REQUESTS)
HEADED = [name for name in ARCHITECTURES if name != "deepseek_v3"]  # its heads come out of latent vectors
HEADS = 4


def found(lm: LanguageModel, batch_size: int = 2, **settings: Any) -> torch.Tensor:
    """(layers, heads)."""
    scores = locate(lm, PROMPTS, "ships", batch_size=batch_size, **settings)
    assert isinstance(scores, UnitScores)
    return torch.stack(scores.values)


@torch.no_grad()
def next_token(lm: LanguageModel, request: str) -> torch.Tensor:
    """(V,) fp64 log-probabilities behind one prompt alone, without padding."""
    ids = torch.tensor([render(lm.tokenizer, request).ids])
    logits: torch.Tensor = lm.model(ids, use_cache=False).logits
    return logits[0, -1].double().log_softmax(-1)


def mean_divergence(whole: LanguageModel, changed: LanguageModel) -> float:
    total = 0.0
    for request in REQUESTS:
        before, after = next_token(whole, request), next_token(changed, request)
        total += float(torch.nn.functional.kl_div(after, before, log_target=True, reduction="sum"))
    return total / len(REQUESTS)


@pytest.mark.parametrize("architecture", HEADED)
def test_zeroing_equals_zeroed_weights(architecture: str) -> None:
    """A head without its columns of the output projection, shared keys and values left alone."""
    lm = tiny_lm(architecture)
    before = fingerprints(lm.model)
    scores = found(lm)
    assert fingerprints(lm.model) == before
    output = [part for part in lm.parts.eligible() if part.role == "output"]
    for layer, part in enumerate(output):
        for head in range(HEADS):
            changed = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, "changed")
            weight = changed.model.get_parameter(part.name).data
            read = weight if part.orientation == "out_in" else weight.T  # (out, in)
            size = read.shape[1] // HEADS
            read[:, head * size : (head + 1) * size] = 0
            assert float(scores[layer, head]) == pytest.approx(mean_divergence(lm, changed), rel=1e-3, abs=1e-7)
    assert scores.min() > 1e-5  # no head of a random model is without effect


def written_out(layer: int, head: int, mode: str) -> Any:
    """An attention function for one prompt without padding; keys and values are repeated before one head is scaled."""

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, scaling: float, **__: Any
    ) -> tuple[torch.Tensor, None]:
        repeats = query.shape[1] // key.shape[1]
        tensors = {
            "scale_query": query.clone(),
            "scale_key": key.repeat_interleave(repeats, dim=1),
            "scale_value": value.repeat_interleave(repeats, dim=1),
        }
        if module.layer_idx == layer:
            tensors[mode][:, head] *= 1e-5
        products = tensors["scale_query"] @ tensors["scale_key"].transpose(2, 3) * scaling
        later = torch.ones(products.shape[-2:], dtype=torch.bool).triu(1)
        shares = products.masked_fill(later, -torch.inf).softmax(-1)
        return (shares @ tensors["scale_value"]).transpose(1, 2), None

    return attend


@pytest.mark.parametrize("mode", ["scale_query", "scale_key", "scale_value"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2", "phi3", "gpt2", "gpt_neox", "mixtral"])
def test_scaling_equals_attention_written_out(architecture: str, mode: SilenceMode) -> None:
    """Query, key or value of one expanded head, though several query heads share a key head, norms included."""
    lm, changed = tiny_lm(architecture), tiny_lm(architecture)
    scores = found(lm, mode=mode)
    changed.model.set_attn_implementation("eager")
    for layer in range(2):
        for head in range(HEADS):
            AttentionInterface.register("written_out", written_out(layer, head, mode))
            changed.model.set_attn_implementation("written_out")
            assert float(scores[layer, head]) == pytest.approx(mean_divergence(lm, changed), rel=1e-3, abs=1e-7)
    assert len(scores.unique()) == scores.numel()


@pytest.mark.parametrize("mode", SILENCE_MODES)
def test_a_factor_of_one_changes_nothing(mode: SilenceMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "FACTOR", 1.0)
    assert found(tiny_lm("qwen3"), mode=mode).any() == (mode == "zero_out")


def test_batches_do_not_matter_and_runs_are_alike() -> None:
    lm = tiny_lm("gemma2")
    assert torch.equal(found(lm), found(lm))
    torch.testing.assert_close(found(lm, batch_size=1), found(lm, batch_size=3), rtol=1e-3, atol=1e-7)


def test_divergence_by_hand() -> None:
    """p = (3/4, 1/4) against q = (1/4, 3/4): 3/4 log 3 - 1/4 log 3; logits may be shifted."""
    three = float(torch.tensor(3.0, dtype=torch.float64).log())
    whole = torch.tensor([[three, 0.0], [0.0, 0.0]], dtype=torch.float64)
    without = torch.tensor([[5.0, 5.0 + three], [2.0, 2.0]], dtype=torch.float64)
    assert divergence(whole, without).tolist() == pytest.approx([three / 2, 0.0])
    with pytest.raises(NumericalError, match="not finite"):
        divergence(whole, torch.full_like(whole, torch.nan))


@pytest.mark.parametrize(("key_value", "roles"), [("never", 2), ("any", 4), ("all_selected", 2)])
def test_one_head_as_a_region(key_value: KeyValueRule, roles: int) -> None:
    """One of eight heads: its query rows and output columns; key and value rows if one of two users is enough."""
    lm = tiny_lm("llama")
    scores = locate(lm, PROMPTS, Ships(key_value=key_value))
    assert isinstance(scores, UnitScores)
    region = scores.select(1 / 8)
    best = int(torch.stack(scores.values).argmax())
    assert region.metadata.granularity == "head"
    assert region.metadata.selected_units == {"head": ((best // HEADS, -1, best % HEADS),)}
    assert len(region.indices) == roles
    assert {len(entries) for entries in region.indices.values()} == {8 * 32}


def test_what_cannot_be_scored() -> None:
    with pytest.raises(ModelError, match="use a method of weights or neurons"):
        locate(tiny_lm("deepseek_v3"), PROMPTS, "ships")
    mode: Any = "zero"
    with pytest.raises(UsageError, match=r"no mode 'zero'; use zero_out, scale_query"):
        Ships(mode=mode)
    rule: Any = "all"
    with pytest.raises(UsageError, match="no rule 'all' for key_value; use all_selected"):
        Ships(key_value=rule)
