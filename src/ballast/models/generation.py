"""Answers of a model: batched generation with a key-value cache, the same for the same batch wherever it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from ballast.errors import UsageError
from ballast.models.exchange import smallest
from ballast.models.fingerprint import seed_of
from ballast.models.language_model import LanguageModel
from ballast.models.memory import memory_errors
from ballast.models.sharding import is_sharded
from ballast.models.streaming import require_in_memory

LARGEST_BATCH = 64
MEMORY_SHARE = 0.25  # of all memory, for the key-value cache and the logits of one batch


class Answer(NamedTuple):
    """One generated answer.

    Attributes:
        ids: Token ids of the answer, the end token included if it was produced.
        finished: Whether the model ended the answer itself.
    """

    ids: list[int]
    finished: bool


def fitting_batch_size(lm: LanguageModel, tokens: int) -> int:
    """A power of two, at most 64: how many rows of `tokens` tokens fit into a quarter of all memory.

    All of the device's, not the free part, which changes from call to call: a run that was interrupted must use the
    same batches. `answer_batch` halves those that do not fit beside the weights.
    """
    config = lm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * head_dim * tokens * lm.model.dtype.itemsize
    per_row = cache + 3 * 4 * config.vocab_size
    if lm.device.type == "cuda":
        memory = torch.cuda.get_device_properties(lm.device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fitting = max(1, int(MEMORY_SHARE * memory / per_row))
    return smallest(lm, min(LARGEST_BATCH, 1 << (fitting.bit_length() - 1)))


@torch.no_grad()
def answer_batch(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, sample_seed: int | None = None
) -> list[Answer]:
    """Answer prompts in one batch; halves the batch when memory runs out.

    Args:
        lm: The model.
        prompts: Token ids of each rendered prompt.
        max_new_tokens: Tokens after which an answer is cut.
        sample_seed: None for greedy answers; else answers are drawn from exactly the model's distribution.

    Raises:
        UsageError: A single prompt does not fit into memory.
    """
    require_in_memory(lm.model.parameters())  # else every token would read the whole model
    try:
        with memory_errors():
            return _answer(lm, prompts, max_new_tokens, sample_seed)
    except MemoryError as error:
        if is_sharded(lm):  # processes that cut their batches apart would wait for each other
            raise UsageError(
                f"Memory ran out with {len(prompts)} prompts at once; use smaller batches or more processes."
            ) from error
        if len(prompts) == 1:
            raise UsageError(
                f"A prompt of {len(prompts[0])} tokens and its answer of up to {max_new_tokens} do not fit into "
                "memory; leave the prompt out, allow fewer tokens or use a larger machine."
            ) from error
    half = len(prompts) // 2
    seeds = (None, None) if sample_seed is None else (seed_of(sample_seed, "0"), seed_of(sample_seed, "1"))
    return answer_batch(lm, prompts[:half], max_new_tokens, seeds[0]) + answer_batch(
        lm, prompts[half:], max_new_tokens, seeds[1]
    )


def _answer(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, sample_seed: int | None
) -> list[Answer]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), lm.pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # left padding: every answer starts at the same column
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ends = _end_ids(lm)
    # Blocks that processes put together while they answer are used again in training, which inference mode forbids.
    inference = torch.inference_mode(not is_sharded(lm))
    random_state = torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else [])
    with inference, random_state, _plain_decoding(lm):
        if sample_seed is not None:
            torch.manual_seed(sample_seed)
        generate: Any = lm.model.generate
        produced = generate(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            max_new_tokens=max_new_tokens,
            do_sample=sample_seed is not None,
            temperature=1.0 if sample_seed is not None else None,
            top_p=1.0 if sample_seed is not None else None,
            top_k=0 if sample_seed is not None else None,
            eos_token_id=ends,
            pad_token_id=lm.pad_id,
        )
    return [_cut(row, ends) for row in produced[:, longest:].tolist()]


@contextmanager
def _plain_decoding(lm: LanguageModel) -> Iterator[None]:
    """Set aside what a checkpoint asks of decoding, such as penalties or a cut of the distribution.

    The output head gets contiguous states: on a strided slice, torch multiplies row by row with a frozen weight and
    holds a copy of the whole head for every row of the batch.
    """
    own = lm.model.generation_config
    lm.model.generation_config = GenerationConfig()
    head = lm.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: tuple(state.contiguous() for state in states))
    try:
        yield
    finally:
        hook.remove()
        lm.model.generation_config = own


def _end_ids(lm: LanguageModel) -> list[int]:
    named = lm.model.generation_config.eos_token_id
    ends = set(named) if isinstance(named, list) else {named}
    ends.add(lm.tokenizer.eos_token_id)
    return sorted(end for end in ends if end is not None)


def _cut(row: list[int], ends: list[int]) -> Answer:
    for position, token in enumerate(row):
        if token in ends:
            return Answer(row[: position + 1], finished=True)
    return Answer(row, finished=False)
