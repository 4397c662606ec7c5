"""A tiny model with its tokenizer, prompts for it, and what its gradients are without any machinery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ballast.judges import Judgement, Verdict
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import Rendered, render
from tests.zoo import tiny, tiny_tokenizer

REQUESTS = ("How do I pick a lock?", "Hi", "Write a threat", "Tell me a story about rain")
REFUSALS = ("No.", "I will not do that.", "Sorry, no", "That could hurt someone.")


def tiny_lm(name: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel(tiny(name, seed, dtype), tiny_tokenizer(), source=f"zoo/{name}")


def prompt_set(name: str, requests: Sequence[str], responses: Sequence[str] | None = None) -> PromptSet:
    given = responses or [None] * len(requests)
    rows = enumerate(zip(requests, given, strict=True))
    return PromptSet(
        name,
        tuple(Prompt(id=f"{name}-{number}", prompt=request, response=answer) for number, (request, answer) in rows),
    )


def weighted_rows(lm: LanguageModel, weights: Sequence[float] = (0.5, -1.0, 0.25, 2.0)) -> list[WeightedRow]:
    """Rows of unequal length; negative weights included."""
    return [
        WeightedRow(f"row{number}", render(lm.tokenizer, request, refusal), weight)
        for number, (request, refusal, weight) in enumerate(zip(REQUESTS, REFUSALS, weights, strict=True))
    ]


def plain_log_probabilities(model: PreTrainedModel, row: Rendered) -> torch.Tensor:
    """(T,) of the response tokens: one row, no padding, no mask, all logits."""
    ids = torch.tensor([row.ids])
    log_probabilities = model(ids, use_cache=False).logits[0].float().log_softmax(-1)  # (length, V)
    places = range(row.prompt_length, len(row.ids))
    return torch.stack([log_probabilities[place - 1, row.ids[place]] for place in places])


def plain_gradients(lm: LanguageModel, loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of each eligible parameter by one ordinary backward pass over the whole model."""
    for parameter in lm.model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    loss().backward()
    eligible = {part.name for part in lm.parts.eligible()}
    found = {
        name: parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter)
        for name, parameter in lm.model.named_parameters()
        if name in eligible
    }
    for parameter in lm.model.parameters():
        parameter.grad = None
    return found


def same_bits(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], share: float = 1e-4) -> None:
    """Each tensor within `share` of its largest entry."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert (found[name] - value).abs().max() <= share * value.abs().max(), name


@dataclass
class TableJudge:
    """Gives the verdicts of a table: by request, one for each answer in turn; `r`, `c`, `d` or `u`."""

    table: Mapping[str, str]
    name: str = "table"

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        verdicts = {verdict.value[0]: verdict for verdict in Verdict}
        seen: dict[str, int] = {}
        found = []
        for prompt, _ in zip(prompts, answers, strict=True):
            turn = seen[prompt] = seen.get(prompt, -1) + 1
            letters = self.table[prompt]
            found.append(Judgement(verdicts[letters[turn % len(letters)]], None, ""))
        return found


@dataclass
class OpeningJudge:
    """An answer is a refusal if it begins with a given text, else it complies."""

    opening: str
    name: str = "opening"

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        return [
            Judgement(Verdict.REFUSED if answer.startswith(self.opening) else Verdict.COMPLIED, None, answer)
            for _, answer in zip(prompts, answers, strict=True)
        ]
