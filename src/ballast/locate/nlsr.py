"""NLSR's region: what is left of alignment's update in the directions in which it writes most (arXiv 2412.12497).

    score = | V V^T dW |

dW (out, in) is the update that made the model safe: that of a LoRA adapter, or aligned minus base. Y = X dW^T is what
it adds to the outputs at the tokens of refusals, and V (out, m) the top right singular vectors of Y.

The authors score the entries of the adapter's factors B and A. These are not a property of the model: B M and M^-1 A
are the same update for every invertible M. The score here is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ballast.errors import UsageError
from ballast.locate.checkpoints.adapter import read_adapter
from ballast.locate.checkpoints.base_checkpoint import difference, open_base, unchanged
from ballast.locate.checkpoints.directions import (
    Factors,
    Matrix,
    leading_directions,
    matrices_of,
    response_grams,
    share_of_directions,
    split,
)
from ballast.locate.engine import eligible_parameters
from ballast.locate.references import refusal_rows
from ballast.locate.registry import Found, Task, register
from ballast.models import LanguageModel
from ballast.prompts.refusals import REFUSALS
from ballast.regions import exact_fraction
from ballast.regions.metadata import Granularity


@register("nlsr")
@dataclass(frozen=True)
class Nlsr:
    """Settings of NLSR; the model that is located in is the aligned one, with the adapter merged.

    Attributes:
        adapter: Folder of the PEFT LoRA adapter that made the model safe. Either this or `base`.
        base: The checkpoint that alignment started from, as for `open_model`.
        refusals: Wordings used for prompts that bring no response of their own.
        directions: Share of directions kept, in (0, 1]: m = floor(directions * min(out, k)) with k the rank of the
            adapter, or the number of inputs for a base checkpoint.
        projection: `activations`, or `none` for the control |dW|, which reads no prompt.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "Yi et al., AAAI 2025, arXiv 2412.12497"
    fidelity: ClassVar[str] = (
        "reconstruction: V and m as in the authors' code, for the factor B; deviations: scores the update dW = scale * "
        "B A in the place of the weights, not the entries of A and B, which are not identifiable; activations of the "
        "given model, which has the adapter merged, all from one pass, where the authors amplify the adapter 1.8 times "
        "and project each layer before the next; exact singular vectors from Gram matrices in fp64 where the authors' "
        "are randomised; directions in which no response token writes are left out; dW from two checkpoints is ours; "
        "end-of-turn token included in the response; the share of weights is chosen at selection"
    )
    needs: ClassVar[str] = "harmful prompts with refusals, and an adapter or the base checkpoint"

    adapter: str = ""
    base: str = ""
    refusals: tuple[str, ...] = REFUSALS[:1]
    directions: float = 0.8
    projection: Literal["activations", "none"] = "activations"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if bool(self.adapter) == bool(self.base):
            raise UsageError("The method nlsr needs the update that made the model safe: give either adapter or base.")
        if self.projection not in ("activations", "none"):
            raise UsageError(f"There is no projection {self.projection!r}; use activations or none.")
        exact_fraction(self.directions)

    def score(self, task: Task) -> Found:
        """Score every eligible weight; what the adapter or alignment left as it was scores 0."""
        updates, factors, notes = self._of_adapter(task.lm) if self.adapter else self._of_base(task.lm)
        notes["unchanged"] = unchanged(task.lm, updates)
        if self.projection == "activations":
            notes |= self._project(task, updates, factors)
        for update in updates.values():
            update.abs_()
        return Found(updates, notes)

    def _of_adapter(self, lm: LanguageModel) -> tuple[dict[str, torch.Tensor], dict[Matrix, Factors], dict[str, Any]]:
        """Updates by parameter name, their factors, and what the record says of the adapter."""
        adapter = read_adapter(lm, self.adapter)
        updates = {
            name: torch.zeros(weight.shape, device=weight.device) for name, weight in eligible_parameters(lm).items()
        }
        factors, views = {}, matrices_of(lm, updates)
        for matrix, (left, right) in adapter.factors.items():
            update = views[matrix]
            factors[matrix] = Factors(left.to(update.device), right.to(update.device))
            update.copy_(left.to(update.device) @ right.to(update.device))
        notes: dict[str, Any] = {
            "adapter_fingerprint": adapter.fingerprint,
            "adapter_trained_on": adapter.trained_on,
            "adapter_left_out": adapter.left_out,
        }
        if adapter.trained_on == lm.source:
            notes["warning"] = f"the adapter was trained on {lm.source}; give the model with the adapter merged"
        return updates, factors, notes

    def _of_base(self, lm: LanguageModel) -> tuple[dict[str, torch.Tensor], dict[Matrix, Factors], dict[str, Any]]:
        """Updates by parameter name, their factors, and what the record says of the base."""
        base = open_base(lm, self.base)
        updates = difference(lm, base)
        factors = {matrix: split(update) for matrix, update in matrices_of(lm, updates).items()}
        return updates, factors, {"base_model": base.identity()}

    def _project(
        self, task: Task, updates: Mapping[str, torch.Tensor], factors: Mapping[Matrix, Factors]
    ) -> dict[str, Any]:
        """Replace dW by V V^T dW in place."""
        changed = {matrix: update for matrix, update in matrices_of(task.lm, updates).items() if update.any()}
        factors = {matrix: factors[matrix] for matrix in changed}
        share = exact_fraction(self.directions)
        counts = {matrix: share_of_directions(factor, share) for matrix, factor in factors.items()}
        rows = refusal_rows(task.lm, task.prompts, self.refusals)
        grams = response_grams(task.lm, rows, task.batch_size, factors)
        unread, short = [], 0  # matrices without a token, and with fewer directions than asked for
        for matrix, update in changed.items():
            if matrix in grams:
                leading = leading_directions(factors[matrix], grams[matrix], counts[matrix]).float()  # (out, m)
                short += leading.shape[1] < counts[matrix]
                update.copy_(leading @ (leading.T @ update))
            else:
                unread.append(str(matrix))
                update.zero_()
        notes: dict[str, Any] = {"prompts_used": len(task.prompts), "rows": len(rows), "short_of_directions": short}
        return notes | ({"unread_experts": unread} if unread else {})
