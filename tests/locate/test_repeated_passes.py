"""Passes that begin at a block give what whole passes give, on every architecture."""

from __future__ import annotations

import pytest
import torch

from ballast.errors import PromptError
from ballast.locate.heads.repeated_passes import forward, prompt_batches, repeated_passes
from ballast.models.tree import block_modules
from ballast.prompts.chat import render
from tests.worlds import REQUESTS, prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES, CONTEXT

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", REQUESTS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_token_of_padded_prompts(architecture: str) -> None:
    lm = tiny_lm(architecture)
    (batch,) = prompt_batches(lm, PROMPTS, batch_size=4)
    found = forward(lm, batch)
    for request in REQUESTS:
        ids = torch.tensor([render(lm.tokenizer, request).ids])
        row = next(
            i for i in range(4) if batch.input_ids[i][batch.attention_mask[i].bool()].tolist() == ids[0].tolist()
        )
        with torch.no_grad():
            alone = lm.model(ids, use_cache=False, output_hidden_states=True)
        torch.testing.assert_close(found.logits[row], alone.logits[0, -1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.state[row], alone.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_from_any_block_on_is_the_whole_pass(architecture: str) -> None:
    lm = tiny_lm(architecture)
    (batch,) = prompt_batches(lm, PROMPTS, batch_size=4)
    blocks = block_modules(lm.model)
    ran: list[int] = []
    for number, block in enumerate(blocks):
        block.get_submodule("mlp").register_forward_hook(lambda *_, number=number: ran.append(number))
    whole = forward(lm, batch)
    with repeated_passes(lm) as passes:
        assert torch.equal(passes.full(batch).logits, whole.logits)
        for layer in reversed(range(len(blocks))):
            ran.clear()
            again = passes.again(layer)
            assert ran == list(range(layer, len(blocks)))
            assert torch.equal(again.logits, whole.logits)
            assert torch.equal(again.state, whole.state)
    assert not any("forward" in vars(block) for block in blocks)


def test_a_pass_after_a_change_is_the_whole_pass_of_the_changed_model() -> None:
    """Also twice in a row: what a repeated pass computes is not kept."""
    lm = tiny_lm("llama")
    (batch,) = prompt_batches(lm, PROMPTS, batch_size=4)
    whole = forward(lm, batch).logits
    with repeated_passes(lm) as passes:
        passes.full(batch)
        with torch.no_grad():
            lm.model.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(2)
            changed = passes.again(1).logits
            assert torch.equal(changed, passes.again(0).logits)
            lm.model.get_parameter("model.layers.1.mlp.down_proj.weight").div_(2)
        assert torch.equal(passes.again(1).logits, whole)
    assert not torch.allclose(changed, whole)


def test_batches_are_of_similar_length() -> None:
    lm = tiny_lm("llama")
    batches = prompt_batches(lm, PROMPTS, batch_size=2)
    lengths = [batch.attention_mask.sum(dim=1).tolist() for batch in batches]
    assert lengths == [sorted(one, reverse=True) for one in lengths]
    assert min(lengths[0]) >= max(lengths[1])
    assert all(batch.attention_mask[:, -1].all() for batch in batches)


def test_a_prompt_that_is_too_long() -> None:
    with pytest.raises(PromptError, match=r"'long-0' takes \d+ tokens and there is room"):
        prompt_batches(tiny_lm("llama"), prompt_set("long", ["x" * CONTEXT]), 1)
