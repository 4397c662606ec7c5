"""SNIP: |weight| times the mean absolute gradient of the refusal's loss (arXiv 1810.02340; 2402.05162 for safety)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ballast.locate.references import refusal_rows
from ballast.locate.registry import Found, Task, register
from ballast.prompts.refusals import REFUSALS
from ballast.regions.metadata import Granularity


@register("snip")
@dataclass(frozen=True)
class Snip:
    """Settings of SNIP.

    Attributes:
        refusals: Wordings used for prompts that bring no response of their own.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "Wei et al., ICML 2024, arXiv 2402.05162; score: Lee et al., arXiv 1810.02340"
    fidelity: ClassVar[str] = (
        "paper: |W| * mean over samples of |dL/dW|, L the mean negative log-likelihood of the response with the prompt "
        "masked; deviations: sums in fp32, end-of-turn token included in the response"
    )
    needs: ClassVar[str] = "harmful prompts with refusals"

    refusals: tuple[str, ...] = REFUSALS[:1]

    def score(self, task: Task) -> Found:
        """Score every eligible weight; every sample counts the same, whatever its length."""
        rows = refusal_rows(task.lm, task.prompts, self.refusals)
        scores = task.gradients(rows, fold="absolute")
        for name, parameter in task.lm.model.named_parameters():
            if name in scores:
                scores[name].mul_(parameter.detach().abs())
        return Found(scores, {"prompts_used": len(task.prompts), "rows": len(rows)})
