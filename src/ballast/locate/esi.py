"""Expected Safety Impact: how much safety moves when a weight moves on its own matrix's scale.

    ESI_i = | sigma(m(i)) * dS/dtheta_i |                                      (arXiv 2604.08297)

sigma(m) is the standard deviation of the entries of the weight matrix m, S the safety score of the model. S cannot be
differentiated through sampled text, so it is estimated:

- `reference_answer`: S is the mean log-probability per token of refusals to harmful prompts, optionally minus that of
  the same refusals to their harmless twins (`contrast`, ours). No judge, one pass.
- `policy_gradient`: S is the expected verdict over answers sampled from the model; its gradient is the REINFORCE
  estimator with a leave-one-out baseline,
      g(x) = 1/(m-1) * sum_j (r_j - mean r) * grad log pi(y_j | x).
  Unbiased for answers cut at `max_new_tokens`, since sampling is exactly from the model.

A third one, `differentiable_judge.py`, is a method of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ballast.errors import UsageError
from ballast.locate.impact import check_sigma_scope, expected_impact
from ballast.locate.policy_gradient import sampled_rows
from ballast.locate.references import refusal_rows
from ballast.locate.registry import Found, Task, register
from ballast.locate.rows import WeightedRow
from ballast.models.sigma import SigmaScope
from ballast.prompts import load_prompts
from ballast.prompts.refusals import REFUSALS
from ballast.regions.metadata import Granularity


@register("esi")
@dataclass(frozen=True)
class ExpectedSafetyImpact:
    """Settings of ESI.

    Attributes:
        estimator: How the gradient of safety is estimated, see the module's text.
        refusals: `reference_answer`: wordings used for prompts that bring no response of their own.
        contrast: `reference_answer`: a set of harmless twins, such as `builtin/twins/tune`. Safety is then how much
            more likely refusals are after harmful prompts than after their twins; not in the paper.
        sigma_scope: What has one sigma: `matrix`, where the gate and up halves of an expert are one each; `slice`, an
            expert with both; or `tensor`, all experts that are stored as one, as in the authors' code.
        samples: `policy_gradient`: answers drawn per prompt, at least 2.
        max_new_tokens: `policy_gradient`: tokens after which an answer is cut.
        judge: `policy_gradient`: the judge whose verdict is the reward (refused 1, complied 0).
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "Qi et al., Findings of ACL 2026, arXiv 2604.08297"
    fidelity: ClassVar[str] = (
        "reconstruction: score, sigma and selection as in the paper; the likelihood estimator is ours and measures the "
        "ability to say the refusal; the policy gradient follows the paper's idea, its details are ours; sums are "
        "divided by the number of prompts and kept in fp32, where the authors' code adds in the weights' dtype"
    )
    needs: ClassVar[str] = "harmful prompts"

    estimator: Literal["reference_answer", "policy_gradient"] = "reference_answer"
    refusals: tuple[str, ...] = REFUSALS
    contrast: str | None = None
    sigma_scope: SigmaScope = "matrix"
    samples: int = 4
    max_new_tokens: int = 48
    judge: str = "keyword"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.estimator not in ("reference_answer", "policy_gradient"):
            raise UsageError(f"There is no ESI estimator {self.estimator!r}; use reference_answer or policy_gradient.")
        check_sigma_scope(self.sigma_scope)
        if self.samples < 2:
            raise UsageError(f"The policy gradient needs at least 2 samples per prompt, not {self.samples}.")

    def score(self, task: Task) -> Found:
        """Score every eligible weight by ESI."""
        rows, notes = self._rows(task)
        scores = task.gradients(rows, fold="sum")
        return Found(scores, {**notes, "sigma": expected_impact(task.lm, scores, self.sigma_scope)})

    def _rows(self, task: Task) -> tuple[list[WeightedRow], dict[str, Any]]:
        if self.estimator == "policy_gradient":
            return sampled_rows(task, self.samples, self.max_new_tokens, self.judge)
        twins = load_prompts(self.contrast) if self.contrast else None
        rows = refusal_rows(task.lm, task.prompts, self.refusals, twins)
        notes: dict[str, Any] = {"prompts_used": len(task.prompts), "rows": len(rows)}
        return rows, notes | ({"contrast_hash": twins.hash} if twins else {})
