"""What attention computes with, on every architecture."""

from __future__ import annotations

import pytest
import torch

from ballast.errors import ModelError
from ballast.models.attention import Attention, observed_attention
from ballast.models.language_model import LanguageModel
from tests.zoo import ARCHITECTURES, tiny, tiny_tokenizer

torch.set_num_threads(1)


def opened(name: str) -> LanguageModel:
    return LanguageModel(tiny(name), tiny_tokenizer(), name)


def padded() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_observing_changes_nothing(name: str) -> None:
    lm, batch = opened(name), padded()
    real = batch["attention_mask"].bool()
    before = lm.model(**batch).logits
    seen: list[Attention] = []
    with observed_attention(lm, seen.append):
        during = lm.model(**batch).logits
    torch.testing.assert_close(during[real], before[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lm.model(**batch).logits, before, rtol=0, atol=0)
    assert [one.layer for one in seen] == list(range(lm.model.config.num_hidden_layers))


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_probabilities_are_those_of_the_model(name: str) -> None:
    """Query, key, scale, cap, mask and sink together give the weights with which the model mixes the values."""
    lm, batch = opened(name), padded()
    seen: list[Attention] = []
    with observed_attention(lm, seen.append):
        found = lm.model(**batch, output_attentions=True).attentions
    real = batch["attention_mask"].bool()
    for one, expected in zip(seen, found, strict=True):
        keys = one.key.repeat_interleave(one.group, dim=1)
        shares = one.probabilities(one.query @ keys.transpose(2, 3) * one.scaling)
        torch.testing.assert_close(shares.transpose(1, 2)[real], expected.transpose(1, 2)[real], rtol=1e-5, atol=1e-6)
        more = one.probabilities((one.query @ keys.transpose(2, 3) * one.scaling).unsqueeze(2).repeat(1, 1, 3, 1, 1))
        assert torch.equal(more, shares.unsqueeze(2).repeat(1, 1, 3, 1, 1))


@torch.no_grad()
def test_what_is_returned_is_computed_with() -> None:
    """Values that are doubled double what the output projection reads."""
    lm, batch = opened("llama"), padded()
    read: list[torch.Tensor] = []
    projection = lm.model.get_submodule("model.layers.0.self_attn.o_proj")
    hook = projection.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    with observed_attention(lm, lambda _: None):
        lm.model(**batch)
    with observed_attention(lm, lambda one: one._replace(value=2 * one.value)):
        lm.model(**batch)
    hook.remove()
    torch.testing.assert_close(read[1], 2 * read[0])


def test_a_model_that_hides_its_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = opened("llama")
    monkeypatch.setattr(type(lm.model), "_can_set_attn_implementation", classmethod(lambda _: False))
    with pytest.raises(ModelError, match="does not show its attention"), observed_attention(lm, print):
        pass
