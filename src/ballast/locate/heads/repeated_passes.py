"""Forward passes that are read at the last token of prompts and can be repeated from any block on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from ballast.models import LanguageModel
from ballast.models.tree import block_modules
from ballast.prompts import PromptSet
from ballast.prompts.batches import TokenBatch, collate
from ballast.prompts.chat import check_length, render


class LastToken(NamedTuple):
    """What a model computes at the last token of B prompts.

    Attributes:
        state: (B, H) what the output head reads, in the model's dtype.
        logits: (B, V) of the next token.
    """

    state: torch.Tensor
    logits: torch.Tensor


def prompt_batches(lm: LanguageModel, prompts: PromptSet, batch_size: int) -> list[TokenBatch]:
    """The prompts as batches of similar length, padded on the left: the last token of each is in the last column.

    Raises:
        PromptError: A prompt is longer than the context.
    """
    rows = [(prompt.id, render(lm.tokenizer, prompt.prompt)) for prompt in prompts]
    for identity, rendered in rows:
        check_length(rendered, lm.context, identity)
    ordered = sorted((rendered for _, rendered in rows), key=lambda rendered: len(rendered.ids), reverse=True)
    groups = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [collate(group, lm.pad_id, "left").to(lm.device) for group in groups]


def forward(lm: LanguageModel, batch: TokenBatch) -> LastToken:
    """One pass of a batch from `prompt_batches`, without gradients."""
    states: list[torch.Tensor] = []
    head = lm.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0][:, -1]))
    try:
        with torch.no_grad():
            logits: torch.Tensor = lm.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                logits_to_keep=1,
                use_cache=False,
            ).logits
    finally:
        hook.remove()
    return LastToken(states[0], logits[:, -1])


class Passes:
    """Passes of one batch; made by `repeated_passes`."""

    def __init__(self, lm: LanguageModel) -> None:
        """Know no batch yet."""
        self._lm = lm
        self._first = 0
        self._outputs: dict[int, Any] = {}
        self._batch: TokenBatch | None = None

    def full(self, batch: TokenBatch) -> LastToken:
        """A whole pass; what every block puts out is kept."""
        self._batch, self._first, self._outputs = batch, 0, {}
        return forward(self._lm, batch)

    def again(self, layer: int) -> LastToken:
        """The pass of the same batch once more, from the block `layer` on; nothing before it may have changed."""
        assert self._batch is not None
        self._first = layer
        return forward(self._lm, self._batch)

    def run(self, number: int, own: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What one block puts out: kept if the pass begins behind it."""
        if number < self._first:
            return self._outputs[number]
        output = own(*arguments, **named)
        self._outputs.setdefault(number, output)
        return output


@contextmanager
def repeated_passes(lm: LanguageModel) -> Iterator[Passes]:
    """Let passes begin at any block: the blocks before it put out what they did in the last full pass."""
    passes = Passes(lm)
    with ExitStack() as undo:
        for number, block in enumerate(block_modules(lm.model)):
            block.forward = partial(passes.run, number, block.forward)
            undo.callback(delattr, block, "forward")
        yield passes
