"""Passes that begin at a block give what whole passes give, on every architecture."""

from __future__ import annotations

import pytest
import torch

from ballast.errors import PromptError
from ballast.locate.heads.repeated_passes import PromptBatch, forward, prompt_batches, repeated_passes
from ballast.models.tree import block_modules
from ballast.prompts.chat import render
from tests.worlds import REQUESTS, prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES, CONTEXT

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", REQUESTS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shared", [0, 10])
def test_the_last_token_of_padded_prompts(architecture: str, shared: int) -> None:
    """Also where all prompts begin alike, and that beginning is computed once."""
    lm = tiny_lm(architecture)
    requests = ["." * shared + request for request in REQUESTS]
    (batch,) = prompt_batches(lm, prompt_set("harmful", requests), batch_size=4)
    assert (batch.beginning.shape[1] > shared) == (shared > 0)
    found = forward(lm, batch)
    for request in requests:
        ids = torch.tensor([render(lm.tokenizer, request).ids])
        row = _row_of(batch, ids[0].tolist())
        with torch.no_grad():
            alone = lm.model(ids, use_cache=False, output_hidden_states=True)
        torch.testing.assert_close(found.logits[row], alone.logits[0, -1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.state[row], alone.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [0, 10])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_from_any_block_on_is_the_whole_pass(architecture: str, shared: int) -> None:
    lm = tiny_lm(architecture)
    (batch,) = prompt_batches(lm, prompt_set("harmful", ["." * shared + one for one in REQUESTS]), batch_size=4)
    stages = 2 if batch.beginning.numel() else 1
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
            assert ran == list(range(layer, len(blocks))) * stages
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


def _row_of(batch: PromptBatch, ids: list[int]) -> int:
    rows = [
        batch.beginning[0].tolist() + tokens[mask.bool()].tolist()
        for tokens, mask in zip(batch.rest.input_ids, batch.rest.attention_mask, strict=True)
    ]
    return rows.index(ids)


def test_a_beginning_that_changes_with_the_model() -> None:
    """A change before the beginning's last token reaches it through keys and values."""
    lm = tiny_lm("llama")
    (batch,) = prompt_batches(lm, prompt_set("harmful", ["." * 20 + one for one in REQUESTS]), batch_size=4)
    with repeated_passes(lm) as passes, torch.no_grad():
        passes.full(batch)
        lm.model.get_parameter("model.layers.0.self_attn.v_proj.weight").mul_(2)
        assert torch.equal(passes.again(0).logits, forward(lm, batch).logits)


@pytest.mark.parametrize("length", [40, 50])
def test_a_row_longer_than_the_sliding_window_shares_no_beginning(length: int) -> None:
    lm = tiny_lm("mistral")
    batches = prompt_batches(lm, prompt_set("harmful", ["." * length + "a", "." * 20]), batch_size=2)
    assert batches[0].beginning.numel() == 0 if length == 50 else batches[0].beginning.numel() > 0


def test_batches_are_of_similar_length() -> None:
    lm = tiny_lm("llama")
    batches = prompt_batches(lm, prompt_set("harmful", ["." * length for length in range(1, 11)]), batch_size=1)
    assert [len(batch.rest.input_ids) for batch in batches] == [4, 4, 2]
    lengths = [batch.rest.attention_mask.sum(dim=1).tolist() for batch in batches]
    assert lengths == [sorted(one, reverse=True) for one in lengths]
    assert min(lengths[0]) >= max(lengths[1])
    assert min(lengths[1]) >= max(lengths[2])
    assert all(batch.rest.attention_mask[:, -1].all() for batch in batches)


def test_a_prompt_that_is_too_long() -> None:
    with pytest.raises(PromptError, match=r"'long-0' takes \d+ tokens and there is room"):
        prompt_batches(tiny_lm("llama"), prompt_set("long", ["x" * CONTEXT]), 1)
