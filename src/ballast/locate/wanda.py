"""Wanda: |weight| times the norm of what the weight reads while the model refuses (arXiv 2306.11695; 2402.05162)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ballast.errors import UsageError
from ballast.locate.inputs import Inputs, Reader
from ballast.locate.references import refusal_rows
from ballast.locate.registry import Found, Task, register
from ballast.locate.rows import WeightedRow
from ballast.locate.weights import scores_by_part
from ballast.models.parts import Part
from ballast.prompts.batches import TokenBatch
from ballast.prompts.refusals import REFUSALS
from ballast.regions.metadata import Granularity


@register("wanda")
@dataclass(frozen=True)
class Wanda:
    """Settings of Wanda.

    Attributes:
        refusals: Wordings used for prompts that bring no response of their own.
        positions: `response` reads where the input token is a response token; `predicting` where the next one is, as
            the loss of SNIP does.
        aggregation: `tokens` adds up all of these positions, so long responses weigh more; `samples` takes the mean
            over the positions of a sample first.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "Wei et al., ICML 2024, arXiv 2402.05162; score: Sun et al., arXiv 2306.11695"
    fidelity: ClassVar[str] = (
        "paper: |W[i,j]| * root of (1/n) sum of X[t,j]^2 over samples and response positions; deviations: sums in "
        "fp32, end-of-turn token included in the response"
    )
    needs: ClassVar[str] = "harmful prompts with refusals"

    refusals: tuple[str, ...] = REFUSALS[:1]
    positions: Literal["response", "predicting"] = "response"
    aggregation: Literal["tokens", "samples"] = "tokens"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.positions not in ("response", "predicting"):
            raise UsageError(f"There are no positions {self.positions!r}; use response or predicting.")
        if self.aggregation not in ("tokens", "samples"):
            raise UsageError(f"There is no aggregation {self.aggregation!r}; use tokens or samples.")

    def score(self, task: Task) -> Found:
        """Score every eligible weight; experts that no counted token reached score 0 and are named."""
        rows = refusal_rows(task.lm, task.prompts, self.refusals)
        squares = self._squares(task, rows)
        norms = {name: (sums / len(rows)).sqrt() for name, sums in squares.items()}  # (in,) or (experts, in)

        def score(part: Part) -> torch.Tensor:
            return task.lm.weight(part.name).float().abs().mul_(_along_inputs(part, norms[part.name]))

        unread = [
            f"{name}[{expert}]"
            for name, sums in squares.items()
            if sums.dim() == 2
            for expert in (sums.amax(dim=1) == 0).nonzero().flatten().tolist()
        ]
        notes: dict[str, Any] = {"prompts_used": len(task.prompts), "rows": len(rows)}
        return Found(scores_by_part(task.lm, score), notes | ({"unread_experts": unread} if unread else {}))

    def _squares(self, task: Task, rows: list[WeightedRow]) -> dict[str, torch.Tensor]:
        """Sums of squared inputs at the counted positions, fp32 (in,) or (experts, in) by parameter name."""
        squares = {
            part.name: torch.zeros(_input_shape(part), device=task.lm.device) for part in task.lm.parts.eligible()
        }

        read, sums = torch.empty(0), torch.empty(0)  # the last inputs, and their squares summed

        def see(inputs: Inputs, weights: torch.Tensor) -> None:
            nonlocal read, sums
            if inputs.values is not read:
                read, sums = inputs.values, weights @ inputs.values.float().square()
            where = squares[inputs.part.name]
            (where if inputs.expert is None else where[inputs.expert]).add_(sums)

        task.inputs(rows, Reader(self._position_weights, see))
        return squares

    def _position_weights(self, batch: TokenBatch) -> torch.Tensor:
        """Weight of each position in the sums, fp32 (B, T)."""
        mask = batch.response_mask.float()
        if self.positions == "predicting":
            mask = torch.nn.functional.pad(mask[:, 1:], (0, 1))
        if self.aggregation == "samples":
            mask /= mask.sum(dim=1, keepdim=True)
        return mask


def _input_axis(part: Part) -> int:
    """The axis of the stored weight that counts inputs; negative, so that it holds with and without experts."""
    return -1 if part.orientation == "out_in" else -2


def _input_shape(part: Part) -> tuple[int, ...]:
    inputs = part.shape[_input_axis(part)]
    return (inputs,) if part.expert_dim is None else (part.shape[part.expert_dim], inputs)


def _along_inputs(part: Part, norms: torch.Tensor) -> torch.Tensor:
    """Norms in a shape that multiplies the stored weight."""
    return norms.unsqueeze(-2 if part.orientation == "out_in" else -1)
