"""A target, a guard and an answer of the one that the other judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ballast.locate.differentiable_judge import DifferentiableJudge
from ballast.locate.soft.alignment import Bridge, vocabulary_map
from ballast.locate.soft.guard import Guard
from ballast.locate.soft.reference_code import Pairing
from ballast.locate.soft.relaxation import Relaxation
from ballast.locate.soft.soft_answers import Examiner
from ballast.locate.soft.soft_judge import Objective, Reading, embedding_table, safety
from ballast.locate.soft.token_bytes import spelled_text, token_bytes
from ballast.models import LanguageModel
from ballast.models.generation import answer_batch
from ballast.prompts.chat import Rendered, render
from tests.vocabularies import pair_tokenizer
from tests.worlds import prompt_set
from tests.zoo import tiny

SEED = 3
PROMPTS = prompt_set("harmful", ["How?", "Write a threat", "Tell me"])
TOKENS = 6


def target_lm(name: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> LanguageModel:
    """Every answer of this model is text."""
    return LanguageModel(tiny(name, seed, dtype), pair_tokenizer(), source=f"zoo/{name}")


def method(folder: Path, **settings: Any) -> DifferentiableJudge:
    return DifferentiableJudge(judge=str(folder), max_new_tokens=TOKENS, safe="s", unsafe="u", **settings)


def opened(folder: Path) -> Guard:
    return Guard.open(str(folder), torch.device("cpu"), safe="s", unsafe="u")


class World:
    """A target, a guard, and one judged answer, all in fp64."""

    def __init__(
        self,
        folder: Path,
        relaxation: Relaxation,
        objective: Objective = "log_odds",
        pairing: Pairing | None = None,
        saturated: bool = False,
    ) -> None:
        self.lm = target_lm("gpt2", torch.float64)
        self.guard = opened(folder)
        self.guard.lm.model.requires_grad_(False)
        assert self.guard.lm.model.dtype == torch.float64
        own = token_bytes(self.lm.tokenizer)
        table = embedding_table(self.guard.lm)
        self.bridge = Bridge(table, vocabulary_map(own, self.guard.vocabulary, 260, len(table)))
        self.examiner = Examiner(
            self.lm, self.guard, self.bridge, relaxation, objective, pairing or Pairing(), saturated
        )
        prompt = render(self.lm.tokenizer, "Write a threat")
        (answer,) = answer_batch(self.lm, [prompt.ids], TOKENS)
        self.rendered = Rendered([*prompt.ids, *answer.ids], len(prompt.ids))
        spelled = spelled_text([own.content[token] for token in answer.ids], leading_space=True)
        assert spelled is not None
        self.text, self.spans = spelled
        reading = self.guard.read("Write a threat", self.text)
        assert isinstance(reading, Reading)
        self.reading = reading
        found = self.examiner.examine("x", self.rendered, self.spans, self.reading)
        assert not isinstance(found, str)
        self.answer, self.findings = found

    def logits(self, rendered: Rendered) -> torch.Tensor:
        """(T, V) that predict the answer, by one plain pass."""
        ids = torch.tensor([rendered.ids])
        logits: torch.Tensor = self.lm.model(ids, use_cache=False).logits
        return logits[0, rendered.prompt_length - 1 : -1]

    def value(self, p: torch.Tensor) -> torch.Tensor:
        """F of mixtures p (T, V), the judge's input made here."""
        soft = self.bridge.soft_embeddings(p, self.answer.ids, self.hard, self.answer.alignment)
        return safety(self.guard.verdict(self.spliced(soft), self.reading), self.examiner.objective)

    @property
    def hard(self) -> torch.Tensor:
        begin = self.reading.begin
        return self.bridge.table[self.reading.ids[begin : begin + len(self.reading.spans)]]

    def spliced(self, touched: torch.Tensor) -> torch.Tensor:
        all_hard = self.bridge.table[self.reading.ids]
        begin = self.reading.begin
        return torch.cat([all_hard[:begin], touched, all_hard[begin + len(touched) :]])
