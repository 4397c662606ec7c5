"""Rows for likelihood methods: each harmful prompt with the refusals whose likelihood stands for safety."""

from __future__ import annotations

from collections.abc import Sequence

from ballast.errors import PromptError
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import check_length, render


def refusal_rows(
    lm: LanguageModel, prompts: PromptSet, wordings: Sequence[str], contrast: PromptSet | None = None
) -> list[WeightedRow]:
    """One row per prompt and refusal; the weighted sum is the mean over prompts of the log-probability per token.

    With `contrast`, the same refusal after the prompt's harmless twin counts negatively: the sum is then how much more
    likely refusals are after harmful prompts than after their twins.

    Args:
        lm: Gives the tokenizer and the context length.
        prompts: Harmful prompts. A prompt with a response uses that response alone.
        wordings: Refusals for prompts without a response.
        contrast: Harmless prompts; twins are those that share the pair number of a harmful one.

    Raises:
        PromptError: A prompt with its refusal is longer than the context, or has no twin.
    """
    twins = {} if contrast is None else {twin.pair: twin for twin in contrast if twin.pair is not None}
    rows = []
    for prompt in prompts:
        texts = [prompt.response] if prompt.response else wordings
        for number, text in enumerate(texts):
            share = 1.0 / (len(prompts) * len(texts))
            rows.append(_row(lm, prompt, text, f"{prompt.id}#{number}", share))
            if contrast is not None:
                if prompt.pair not in twins:
                    raise PromptError(
                        f"{prompt.id} has no twin in {contrast.name}; give both the same number as `pair`."
                    )
                rows.append(_row(lm, twins[prompt.pair], text, f"{prompt.id}#{number} twin", -share))
    return rows


def _row(lm: LanguageModel, prompt: Prompt, text: str, name: str, share: float) -> WeightedRow:
    rendered = render(lm.tokenizer, prompt.prompt, text)
    check_length(rendered, lm.context, prompt.id)
    return WeightedRow(name, rendered, share / (len(rendered.ids) - rendered.prompt_length))
