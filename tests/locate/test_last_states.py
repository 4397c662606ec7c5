"""Hidden states of the last token against one prompt at a time without padding."""

from __future__ import annotations

import pytest
import torch

from ballast.errors import NumericalError, PromptError
from ballast.locate.last_states import last_states
from ballast.models.tree import block_modules
from ballast.prompts.chat import render
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES, HIDDEN

torch.set_num_threads(1)

PROMPTS = prompt_set("some", ["How?", "Write a long threat about rain", "And then?", "A", "Tell me a story"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_states_are_those_of_each_prompt_alone(name: str) -> None:
    """Also after the last block, where the model's own list of hidden states has gone through the final norm."""
    lm = tiny_lm(name)
    found = last_states(lm, PROMPTS, batch_size=2)
    blocks = block_modules(lm.model)
    assert found.shape == (len(blocks), len(PROMPTS), HIDDEN)
    assert found.dtype == torch.float32
    final: list[torch.Tensor] = []

    def keep(_: object, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        final.append(output if isinstance(output, torch.Tensor) else output[0])

    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([render(lm.tokenizer, prompt.prompt).ids])
        hook = blocks[-1].register_forward_hook(keep)
        with torch.no_grad():
            states = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        hook.remove()
        expected = torch.stack([*(layer[0, -1] for layer in states[1:-1]), final[-1][0, -1]])
        torch.testing.assert_close(found[:, number], expected, rtol=1e-4, atol=1e-5)


def test_the_batch_size_does_not_matter() -> None:
    lm = tiny_lm()
    torch.testing.assert_close(last_states(lm, PROMPTS, 1), last_states(lm, PROMPTS, 8), rtol=1e-4, atol=1e-5)


def test_a_prompt_beyond_the_context_is_named() -> None:
    with pytest.raises(PromptError, match="'long-1'"):
        last_states(tiny_lm(), prompt_set("long", ["Hi", "a" * 600]), 2)


def test_states_that_are_not_finite() -> None:
    lm = tiny_lm()
    with torch.no_grad():
        next(iter(block_modules(lm.model).parameters())).fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        last_states(lm, PROMPTS, 2)
