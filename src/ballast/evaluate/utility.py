"""What a model is good for: the likelihood of reference answers, and the accuracy on multiple-choice questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ballast.errors import PromptError
from ballast.evaluate.choices import answerable_choices, choices_of
from ballast.evaluate.likelihoods import scored
from ballast.evaluate.pairing import UtilityRow
from ballast.evaluate.statistics import bootstrap_mean_interval, wilson
from ballast.evaluate.summary import Kind, UtilityResult
from ballast.models import LanguageModel
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import Rendered, check_length, render

MAX_TOKENS = 256
BOOTSTRAP_SEED = 0
UNITS: dict[Kind, str] = {"log_likelihood": "nats per token", "multiple_choice": "accuracy"}


def kind_of(prompts: PromptSet) -> Kind:
    """How a set measures utility: `multiple_choice` if every prompt has choices, else `log_likelihood`.

    Choices are the field of that name or what `ballast.evaluate.choices` finds in the question.

    Raises:
        PromptError: A prompt has no response, a response is none of its choices, or only some rows have the field.
    """
    if all(choices_of(prompt) for prompt in prompts):
        for prompt in prompts:
            answerable_choices(prompt)
        return "multiple_choice"
    if any(prompt.choices for prompt in prompts):
        odd = next(prompt for prompt in prompts if choices_of(prompt) is None)
        raise PromptError(
            f"Prompt {odd.id!r} of {prompts.name} has no `choices` and others have; give all of them choices, or none."
        )
    for prompt in prompts:
        _response(prompt)
    return "log_likelihood"


def utility_rows(
    lm: LanguageModel, prompts: PromptSet, kind: Kind, *, batch_size: int | None = None, out: Path | None = None
) -> list[UtilityRow]:
    """The rows of one kind of measurement; see `log_likelihood` and `multiple_choice`."""
    measured = multiple_choice if kind == "multiple_choice" else log_likelihood
    return measured(lm, prompts, batch_size=batch_size, out=out)


def log_likelihood(
    lm: LanguageModel,
    prompts: PromptSet,
    *,
    max_tokens: int = MAX_TOKENS,
    batch_size: int | None = None,
    out: Path | None = None,
) -> list[UtilityRow]:
    """Mean log-probability per token of each response, in nats; one row per prompt, in their order.

    The weight of a row is the number of its tokens, so the weighted mean of the rows is the mean over all tokens, and
    its exponential with a minus sign the perplexity. The token that ends the answer counts as one of them.

    Args:
        lm: The model.
        prompts: Every prompt needs a response.
        max_tokens: Later tokens of a response are left out; what is left keeps its probability.
        batch_size: Prompts per batch; found from the lengths if None. It moves a value by rounding only.
        out: JSON lines file; rows that it holds already are not computed again.

    Raises:
        PromptError: A prompt has no response or does not fit into the context.
        NumericalError: A log-probability is not finite.
        RunError: `out` cannot be read or written.
    """

    def cut(prompt: Prompt) -> Rendered:
        row = render(lm.tokenizer, prompt.prompt, _response(prompt))
        return Rendered(row.ids[: row.prompt_length + max_tokens], row.prompt_length)

    def row_of(identity: str, answers: Sequence[torch.Tensor]) -> UtilityRow:
        (answer,) = answers
        return UtilityRow(id=identity, value=answer.double().mean().item(), weight=len(answer))

    groups = {prompt.id: [_checked(lm, cut(prompt), prompt.id)] for prompt in prompts}
    return scored(lm, groups, row_of, title=f"Likelihood of {prompts.name}", batch_size=batch_size, out=out)


def multiple_choice(
    lm: LanguageModel, prompts: PromptSet, *, batch_size: int | None = None, out: Path | None = None
) -> list[UtilityRow]:
    """Whether the model finds the right choice of each question; one row per prompt, in their order.

    Each choice is scored as the answer to the question: its log-probability divided by its length in UTF-8 bytes, which
    does not favour short choices or depend on the tokenizer. The token that ends an answer is left out. This is
    `acc_norm` of EleutherAI's lm-evaluation-harness, with the question in the model's chat format. The value of a row
    is 1 if the right choice scores higher than every other, else 0 (so a tie is wrong), and its weight is 1.

    Args:
        lm: The model.
        prompts: Every prompt needs choices, see `ballast.evaluate.choices`.
        batch_size: Questions per batch; found from the lengths if None.
        out: JSON lines file; rows that it holds already are not computed again.

    Raises:
        PromptError: A prompt has no choices, its response is none of them, or it does not fit into the context.
        NumericalError: A log-probability is not finite.
        RunError: `out` cannot be read or written.
    """
    choices = {prompt.id: answerable_choices(prompt) for prompt in prompts}
    responses = {prompt.id: prompt.response for prompt in prompts}

    def without_end(prompt: Prompt, choice: str) -> Rendered:
        row = render(lm.tokenizer, prompt.prompt, choice)
        ends = not lm.tokenizer.decode(row.ids[-1:], skip_special_tokens=True)
        return Rendered(row.ids[:-1], row.prompt_length) if ends else row

    def row_of(identity: str, answers: Sequence[torch.Tensor]) -> UtilityRow:
        scores = {
            choice: answer.double().sum().item() / len(choice.strip().encode())
            for choice, answer in zip(choices[identity], answers, strict=True)
        }
        right = scores.pop(responses[identity] or "")
        return UtilityRow(id=identity, value=float(right > max(scores.values())), weight=1)

    groups = {
        prompt.id: [_checked(lm, without_end(prompt, choice), prompt.id) for choice in choices[prompt.id]]
        for prompt in prompts
    }
    return scored(lm, groups, row_of, title=f"Choices of {prompts.name}", batch_size=batch_size, out=out)


def utility_result(prompts: PromptSet, kind: Kind, rows: Sequence[UtilityRow]) -> UtilityResult:
    """The weighted mean of the rows with its 95 % interval.

    Args:
        prompts: The set.
        kind: What the rows are: log-likelihoods get a bootstrap interval over rows, accuracies that of Wilson.
        rows: One per prompt.
    """
    values = np.array([row.value for row in rows])
    weights = np.array([row.weight for row in rows])
    if kind == "multiple_choice":
        interval = wilson(int(values.sum()), len(rows))
    else:
        interval = bootstrap_mean_interval(values, BOOTSTRAP_SEED, weights=weights)
    return UtilityResult(
        name=prompts.name,
        slug=prompts.slug,
        hash=prompts.hash,
        kind=kind,
        value=float(np.average(values, weights=weights)),
        n=len(rows),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        unit=UNITS[kind],
    )


def _response(prompt: Prompt) -> str:
    if prompt.response is None:
        raise PromptError(
            f"Prompt {prompt.id!r} has neither a response nor choices; "
            "measure utility on a set in which every prompt has one or the other."
        )
    return prompt.response


def _checked(lm: LanguageModel, row: Rendered, identity: str) -> Rendered:
    check_length(row, lm.context, identity)
    if len(row.ids) == row.prompt_length:
        raise PromptError(f"An answer to prompt {identity!r} has no tokens that could be scored; mend that row.")
    return row
