"""Rows for likelihood methods: each harmful prompt with the refusals whose likelihood stands for safety."""

from __future__ import annotations

from collections.abc import Sequence

from ballast.locate.engine import WeightedRow
from ballast.models import LanguageModel
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import check_length, render

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request because it could cause harm.",
    "No, I won't help with that. It could hurt people.",
)


def refusal_rows(lm: LanguageModel, prompts: PromptSet, wordings: Sequence[str]) -> list[WeightedRow]:
    """One row per prompt and refusal; the weighted sum is the mean over prompts of the log-probability per token.

    Args:
        lm: Gives the tokenizer and the context length.
        prompts: Harmful prompts. A prompt with a response uses that response alone.
        wordings: Refusals for prompts without a response.

    Raises:
        PromptError: A prompt with its refusal is longer than the context.
    """
    rows = []
    for prompt in prompts:
        texts = _texts(prompt, wordings)
        for number, text in enumerate(texts):
            rendered = render(lm.tokenizer, prompt.prompt, text)
            check_length(rendered, lm.context, prompt.id)
            tokens = len(rendered.ids) - rendered.prompt_length
            rows.append(WeightedRow(f"{prompt.id}#{number}", rendered, 1.0 / (len(prompts) * len(texts) * tokens)))
    return rows


def _texts(prompt: Prompt, wordings: Sequence[str]) -> Sequence[str]:
    return [prompt.response] if prompt.response else wordings
