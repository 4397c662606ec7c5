"""What a model holds at the end of a prompt: the hidden state of its last token after every decoder block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ballast.errors import NumericalError
from ballast.models import LanguageModel
from ballast.models.tree import block_modules
from ballast.progress import track
from ballast.prompts import PromptSet
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered, check_length, render


@torch.no_grad()
def last_states(lm: LanguageModel, prompts: PromptSet, batch_size: int) -> torch.Tensor:
    """One forward pass over the rendered prompts, with the tokens that open the answer as the last ones.

    Args:
        lm: The model.
        prompts: n prompts.
        batch_size: Prompts per pass; they are batched by length.

    Returns:
        (L, n, H) fp32 on the CPU, in the order of the prompts.

    Raises:
        PromptError: A prompt is longer than the context.
        NumericalError: A state is not finite.
    """
    rendered = [render(lm.tokenizer, prompt.prompt) for prompt in prompts]
    for prompt, row in zip(prompts, rendered, strict=True):
        check_length(row, lm.context, prompt.id)
    order = sorted(range(len(rendered)), key=lambda index: -len(rendered[index].ids))
    starts = range(0, len(order), batch_size)
    passes = [
        _pass(lm, [rendered[index] for index in order[start : start + batch_size]])
        for start in track(starts, "Hidden states")
    ]
    states = torch.cat(passes, dim=1)[:, torch.tensor(order).argsort()]
    if not torch.isfinite(states).all():
        raise NumericalError("A hidden state is not finite; open the model in bfloat16 or float32.")
    return states


def _pass(lm: LanguageModel, rows: list[Rendered]) -> torch.Tensor:
    """(L, B, H) of one batch."""
    batch = collate(rows, lm.pad_id).to(lm.device)
    last = [len(row.ids) - 1 for row in rows]
    states: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        values = output if isinstance(output, torch.Tensor) else output[0]  # (B, T, H)
        states.append(values[list(range(len(last))), last].float().cpu())

    hooks = [block.register_forward_hook(keep) for block in block_modules(lm.model)]
    try:
        lm.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=1,
            use_cache=False,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states)
