"""What scaling a window of layers does: refusals of benign prompts that sound alarming, and the cost to usefulness."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch

from ballast.evaluate.answers import generate
from ballast.evaluate.utility import log_likelihood
from ballast.judges import Judge, Verdict
from ballast.locate.layers.gap_curve import Window
from ballast.locate.layers.remembered import Remembered
from ballast.locate.layers.scaling import residual_sublayers, scaled_contributions, scaled_outputs
from ballast.models import LanguageModel
from ballast.prompts import PromptSet
from ballast.prompts.chat import render
from ballast.regions.metadata import canonical_json

Mode = Literal["output", "residual"]
MODES: tuple[Mode, ...] = get_args(Mode)
UNSCALED = Window(0, 0)
REFUSED = Verdict.REFUSED.value[0]
DEGENERATE = Verdict.DEGENERATE.value[0]


@dataclass(frozen=True, eq=False)
class OverRejection:
    """Measures a model with some layers scaled; every measurement is made once.

    Attributes:
        lm: The model.
        benign: Harmless prompts that sound alarming.
        utility: Prompts with responses.
        judge: Tells refusals.
        max_new_tokens: Tokens after which an answer is cut.
        batch_size: Prompts per batch of answers.
        file: JSON lines of what was measured, or None.
    """

    lm: LanguageModel
    benign: PromptSet
    utility: PromptSet
    judge: Judge
    max_new_tokens: int
    batch_size: int
    file: Path | None

    def verdicts(self, window: Window, alpha: float, mode: Mode) -> str:
        """The first letter of the verdict on each benign prompt."""

        def measure() -> str:
            with self.scaled(window, alpha, mode):
                answers = generate(self.lm, self.benign, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
            judged = self.judge.judge([row.prompt for row in answers], [row.answer for row in answers])
            return "".join(judgement.verdict.value[0] for judgement in judged)

        return str(self._remembered.value(_key("verdicts", window, alpha, mode), measure))

    def refused(self, window: Window, alpha: float, mode: Mode) -> list[bool]:
        """Whether each benign prompt is refused."""
        return [letter == REFUSED for letter in self.verdicts(window, alpha, mode)]

    def refusal_rate(self, window: Window, alpha: float, mode: Mode) -> float:
        """Share of the benign prompts that are refused."""
        return sum(self.refused(window, alpha, mode)) / len(self.benign)

    def utility_loss(self, window: Window, alpha: float, mode: Mode) -> float:
        """Mean negative log-likelihood of the responses in nats per token."""

        def measure() -> float:
            with self.scaled(window, alpha, mode):
                rows = log_likelihood(self.lm, self.utility)
            return -sum(row.value * row.weight for row in rows) / sum(row.weight for row in rows)

        return float(self._remembered.value(_key("utility loss", window, alpha, mode), measure))

    def scaled(self, window: Window, alpha: float, mode: Mode) -> AbstractContextManager[None]:
        """Scale the layers inside the block, see `ballast.locate.layers.scaling`."""
        if mode == "output" or window == UNSCALED:
            return scaled_outputs(self.lm, window, alpha)
        return scaled_contributions(self._sublayers, window, alpha)

    @torch.no_grad()
    def logit_change(self, window: Window, alpha: float, mode: Mode) -> float:
        """Euclidean norm of the change of the next token's logits after the first benign prompt."""
        ids = torch.tensor([self._first], device=self.lm.device)
        before, after = (self._logits(ids, self.scaled(layers, alpha, mode)) for layers in (UNSCALED, window))
        return float((after - before).norm())

    def _logits(self, ids: torch.Tensor, scaled: AbstractContextManager[None]) -> torch.Tensor:
        with scaled:
            logits: torch.Tensor = self.lm.model(input_ids=ids, logits_to_keep=1, use_cache=False).logits
        return logits.float()

    @cached_property
    def _first(self) -> list[int]:
        return render(self.lm.tokenizer, self.benign[0].prompt).ids

    @cached_property
    def _sublayers(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        return residual_sublayers(self.lm, self._first)

    @cached_property
    def _remembered(self) -> Remembered:
        sets = [self.benign.hash, self.utility.hash]
        work = [self.lm.identity(), sets, self.judge.name, self.max_new_tokens, self.batch_size]
        return Remembered(self.file, hashlib.sha256(canonical_json(work).encode()).hexdigest())


def _key(measured: str, window: Window, alpha: float, mode: Mode) -> dict[str, object]:
    if window == UNSCALED:
        return {"measured": measured, "window": list(window)}
    return {"measured": measured, "window": list(window), "alpha": alpha, "mode": mode}
