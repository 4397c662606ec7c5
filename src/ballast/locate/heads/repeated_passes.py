"""Forward passes that are read at the last token of prompts and can be repeated from any block on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from ballast.models import LanguageModel
from ballast.models.tree import block_modules
from ballast.prompts import PromptSet
from ballast.prompts.batches import TokenBatch, collate
from ballast.prompts.chat import Rendered, check_length, render

SHORTEST_BEGINNING = 8  # tokens; computing less than this apart costs more calls than it saves
FORWARD_ONLY = 4  # times the rows of a batch that also goes backward take about the same memory


class PromptBatch(NamedTuple):
    """Prompts of one pass, whose common beginning, the template's, is computed once for all of them.

    Attributes:
        beginning: (1, P) int64 tokens that all prompts begin with; P can be 0.
        rest: What follows in each of B prompts, padded on the left: the last token of each is in the last column.
    """

    beginning: torch.Tensor
    rest: TokenBatch


class LastToken(NamedTuple):
    """What a model computes at the last token of B prompts.

    Attributes:
        state: (B, H) what the output head reads, in the model's dtype.
        logits: (B, V) of the next token.
    """

    state: torch.Tensor
    logits: torch.Tensor


def prompt_batches(lm: LanguageModel, prompts: PromptSet, batch_size: int) -> list[PromptBatch]:
    """The prompts as batches of similar length.

    Args:
        lm: The model.
        prompts: They get no answers.
        batch_size: Rows per backward pass; there is none here, so a batch has more.

    Raises:
        PromptError: A prompt is longer than the context.
    """
    rows = [(prompt.id, render(lm.tokenizer, prompt.prompt)) for prompt in prompts]
    for identity, rendered in rows:
        check_length(rendered, lm.context, identity)
    ordered = sorted((rendered.ids for _, rendered in rows), key=len, reverse=True)
    shared = _shared(lm, ordered)
    beginning = torch.tensor([ordered[0][:shared]], dtype=torch.long, device=lm.device)
    rests = [Rendered(ids[shared:], len(ids) - shared) for ids in ordered]
    size = FORWARD_ONLY * batch_size
    groups = [rests[start : start + size] for start in range(0, len(rests), size)]
    return [PromptBatch(beginning, collate(group, lm.pad_id, "left").to(lm.device)) for group in groups]


def _shared(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, without the last of any; the longest row is the first.

    None where a row is longer than a sliding window: it counts padding too, which then stands inside the row.
    """
    window = getattr(lm.model.config.get_text_config(), "sliding_window", None)
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    shared = min(sum(1 for _ in alike), min(map(len, rows)) - 1)
    return 0 if shared < SHORTEST_BEGINNING or (window and len(rows[0]) > window) else shared


@torch.no_grad()
def forward(lm: LanguageModel, batch: PromptBatch, cache: DynamicCache | None = None) -> LastToken:
    """One pass of a batch, without gradients.

    Args:
        lm: The model.
        batch: From `prompt_batches`.
        cache: Keys and values of the beginning, from `begin`; None computes them.
    """
    if cache is None and batch.beginning.numel():
        cache = begin(lm, batch)
    mask = batch.rest.attention_mask
    before = mask.new_ones(len(mask), batch.beginning.shape[1])
    states: list[torch.Tensor] = []
    head = lm.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0][:, -1]))
    try:
        logits: torch.Tensor = lm.model(
            input_ids=batch.rest.input_ids,
            attention_mask=torch.cat([before, mask], dim=1),
            position_ids=batch.rest.position_ids + before.shape[1],
            past_key_values=cache,
            logits_to_keep=1,
            use_cache=cache is not None,
        ).logits
    finally:
        hook.remove()
    return LastToken(states[0], logits[:, -1])


@torch.no_grad()
def begin(lm: LanguageModel, batch: PromptBatch) -> DynamicCache:
    """Keys and values of the beginning, once for each row of the batch."""
    cache = DynamicCache(config=lm.model.config)
    lm.model.base_model(input_ids=batch.beginning, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(batch.rest.input_ids))
    return cache


class Passes:
    """Passes of one batch; made by `repeated_passes`."""

    def __init__(self, lm: LanguageModel) -> None:
        """Know no batch yet."""
        self._lm = lm
        self._first = 0
        self._outputs: dict[tuple[bool, int], Any] = {}  # of a block, for the beginning and for the rest
        self._layers: list[Any] = []  # of the cache of the beginning
        self._in_beginning = False
        self._batch: PromptBatch | None = None

    def full(self, batch: PromptBatch) -> LastToken:
        """A whole pass; what every block puts out is kept."""
        self._batch, self._outputs, self._layers = batch, {}, []
        return self.again(0)

    def again(self, layer: int) -> LastToken:
        """The pass of the same batch once more, from the block `layer` on; nothing before it may have changed."""
        assert self._batch is not None
        self._first = layer
        return forward(self._lm, self._batch, self._cache() if self._batch.beginning.numel() else None)

    def _cache(self) -> DynamicCache:
        """The beginning once more, from the same block on."""
        assert self._batch is not None
        self._in_beginning = True
        cache = begin(self._lm, self._batch)
        self._in_beginning = False
        if not self._layers:
            self._layers = [copy.copy(layer) for layer in cache.layers]
        cache.layers[: self._first] = self._layers[: self._first]
        return cache

    def run(self, number: int, own: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What one block puts out: kept if the pass begins behind it."""
        if number < self._first:
            return self._outputs[self._in_beginning, number]
        output = own(*arguments, **named)
        self._outputs.setdefault((self._in_beginning, number), output)
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
