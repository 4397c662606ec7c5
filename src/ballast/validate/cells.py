"""One cell: what a model, disturbed or not, does on the held-out prompts. Its answers are judged and not kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ballast.evaluate.pairing import Measurement
from ballast.evaluate.summary import Axis, ModelIdentity, Summary
from ballast.evaluate.utility import log_likelihood, utility_result
from ballast.evaluate.verdicts import verdicts_only
from ballast.judges import Judge
from ballast.models import LanguageModel
from ballast.prompts import PromptSet


@dataclass(frozen=True)
class HeldOut:
    """What every cell measures, and how.

    Attributes:
        sets: Harmful and harmless prompts.
        utility: Sets with responses.
        judge: Who judges the answers.
        max_new_tokens: Tokens after which an answer is cut.
    """

    sets: Sequence[tuple[Axis, PromptSet]]
    utility: Sequence[PromptSet]
    judge: Judge
    max_new_tokens: int

    def measured(
        self,
        lm: LanguageModel,
        label: str,
        folder: Path,
        during: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Measurement:
        """Measure one cell, unless that was done before; its summary is written last and makes it done.

        Args:
            lm: The model.
            label: What is done to it, for a reader of the summary.
            folder: Gets `summary.json`, verdicts without answers, and the rows of utility; `ballast.compare` reads it.
            during: What is done to the model, for the time of the measurement.
        """
        if not (folder / "summary.json").exists():
            with during():
                self._summary(lm, label, folder).save(folder)
        return Measurement.open(folder)

    def _summary(self, lm: LanguageModel, label: str, folder: Path) -> Summary:
        verdicts = folder / "verdicts" / self.judge.name
        results = [
            verdicts_only(lm, prompts, axis, self.judge, max_new_tokens=self.max_new_tokens, folder=verdicts)
            for axis, prompts in self.sets
        ]
        rows = [
            log_likelihood(lm, prompts, out=folder / "utility" / f"{prompts.slug}.jsonl") for prompts in self.utility
        ]
        return Summary(
            model=ModelIdentity(
                source=lm.source,
                name=f"{lm.name}, {label}",
                revision=lm.revision,
                dtype=str(lm.model.dtype).removeprefix("torch."),
                parameters=lm.model.num_parameters(),
            ),
            judge=self.judge.name,
            max_new_tokens=self.max_new_tokens,
            sets=tuple(results),
            utility=tuple(
                utility_result(prompts, "log_likelihood", values)
                for prompts, values in zip(self.utility, rows, strict=True)
            ),
        )
