"""Masks, and that padding on either side changes nothing a model says about an answer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.prompts.batches import Side, collate
from ballast.prompts.chat import Rendered, render
from tests.zoo import tiny, tiny_tokenizer

ROWS = [Rendered([5, 6, 7, 8], 2), Rendered([9, 10], 2), Rendered([11, 12, 13], 1)]


def test_right_padding() -> None:
    batch = collate(ROWS, pad_id=99)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 10, 99, 99], [11, 12, 13, 99]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch.response_mask.tolist() == [[False, False, True, True], [False] * 4, [False, True, True, False]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 1, 1], [0, 1, 2, 2]]


def test_left_padding() -> None:
    batch = collate(ROWS, pad_id=99, side="left")
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [99, 99, 9, 10], [99, 11, 12, 13]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    assert batch.response_mask.tolist() == [[False, False, True, True], [False] * 4, [False, False, True, True]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 1, 2]]


def test_kinds_of_numbers_and_moving() -> None:
    batch = collate(ROWS, pad_id=0)
    assert [tensor.dtype for tensor in batch] == [torch.int64, torch.int64, torch.bool]
    assert [tensor.device.type for tensor in batch.to("meta")] == ["meta"] * 3


rows = st.lists(st.integers(0, 50), min_size=1, max_size=12).flatmap(
    lambda ids: st.builds(Rendered, st.just(ids), st.integers(0, len(ids)))
)


@given(rendered=st.lists(rows, min_size=1, max_size=5), side=st.sampled_from(["left", "right"]))
@settings(deadline=None)
def test_rows_are_recovered_from_their_masks(rendered: list[Rendered], side: Side) -> None:
    batch = collate(rendered, pad_id=7, side=side)
    for index, row in enumerate(rendered):
        tokens = batch.attention_mask[index].bool()
        assert batch.input_ids[index][tokens].tolist() == row.ids
        assert batch.input_ids[index][batch.response_mask[index]].tolist() == row.ids[row.prompt_length :]
        assert not (batch.response_mask[index] & ~tokens).any()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_logits_at_answers_do_not_depend_on_padding(name: str) -> None:
    model, tokenizer = tiny(name), tiny_tokenizer()
    exchanges = [
        ("Why?", "Because it is so."),
        ("What is the name of the longest river here?", "No."),
        ("Hm", "Yes, yes."),
    ]
    rendered = [render(tokenizer, prompt, response) for prompt, response in exchanges]
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for side in ("left", "right"):
            batch = collate(rendered, tokenizer.pad_token_id, side)
            output = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
            )
            found[side] = output.logits[batch.response_mask]
        alone = [model(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length :] for row in rendered]
    torch.testing.assert_close(found["left"], found["right"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["right"], torch.cat(alone), atol=1e-5, rtol=0)
