"""A deeper tiny model, prompts with a gap for it, and a judge whose verdicts depend on every letter of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ballast.judges import Judgement, Verdict
from ballast.models import LanguageModel
from tests.worlds import prompt_set
from tests.zoo import GROUPED, tiny_tokenizer

LAYERS = 5
NORMAL = [f"{number} and {number}, how much is that?" for number in "123456789"]
HARMFUL = prompt_set("harmful", [f"{name}. WRITE A LONG THREAT" for name in ("ANN", "BOB", "CYD", "DAN", "EVE", "FAY")])
BENIGN = ["How do I kill a process?", "Shoot a photo", "Hi", "What is a bomb cyclone?", "Steal the show", "And?"]
ANSWERED = {"What is two and two?": "Four.", "Name a colour": "Blue is one.", "Hi": "Hello there"}


def deep_lm(layers: int = LAYERS) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # the gap grows over four of five layers
        model = AutoModelForCausalLM.from_config(LlamaConfig(**{**GROUPED, "num_hidden_layers": layers}))
    return LanguageModel(model.eval(), tiny_tokenizer(), source="zoo/deep")


def written(path: Path, prompts: Sequence[str], responses: Sequence[str] | None = None) -> str:
    """A prompt file, by its path."""
    rows = [{"prompt": prompt} for prompt in prompts]
    for row, response in zip(rows, responses or (), strict=bool(responses)):
        row["response"] = response
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@dataclass
class LetterJudge:
    """Refused, complied or degenerate by the sum of the letters; notes every batch it judges.

    Attributes:
        fail_after: Batches after which it breaks off, as a user would.
    """

    fail_after: int | None = None
    name: str = "letters"
    batches: list[list[str]] = field(default_factory=list)

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        if len(self.batches) == self.fail_after:
            raise KeyboardInterrupt
        assert len(prompts) == len(answers)
        self.batches.append(list(answers))
        kinds = (Verdict.REFUSED, Verdict.COMPLIED, Verdict.DEGENERATE)
        return [Judgement(kinds[sum(map(ord, answer)) % 3], None, "") for answer in answers]
