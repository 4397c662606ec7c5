"""Sahara: a group of heads, taken one by one, whose silence turns the hidden states of a prompt set most (2410.13708).

M (prompts x hidden) holds the states of the last tokens, U its leading left singular vectors. Without some heads the
same prompts give another matrix, and the principal angles between the two spaces are a distance of what the model makes
of the whole set. The greedy search silences in each step the head that adds up to the largest sum of angles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.linalg import subspace_angles

from ballast.errors import PromptError, UsageError
from ballast.locate.heads.repeated_passes import Passes, PromptBatch, prompt_batches, repeated_passes
from ballast.locate.heads.silence import Silenced, SilenceMode, check_head_settings, scorable_heads, silenced_heads
from ballast.locate.registry import Task, UnitsFound, register
from ballast.models.units import KeyValueRule
from ballast.progress import track
from ballast.regions.metadata import Granularity

Head = tuple[int, int]  # layer, number within it


@register("sahara")
@dataclass(frozen=True)
class Sahara:
    """Settings of Sahara.

    Attributes:
        heads: How many heads the search takes.
        vectors: Leading left singular vectors, fewer than prompts.
        mode: How a head is silenced, see `ships`.
        key_value: When key and value rows belong to the region, see `ships`.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "head"
    reference: ClassVar[str] = "Zhou et al., ICLR 2025, arXiv 2410.13708"
    fidelity: ClassVar[str] = (
        "reconstruction: greedy search by the sum of principal angles between leading left singular vectors as in the "
        "paper; deviations: states as the output head reads them, not centred; the number of vectors is ours; a head "
        "is zeroed by default. Scores: the head of the last step and those left over have their angle of that step in "
        "degrees, and each earlier one stands above all later ones by the largest possible angle, so scores rank by "
        "the order of the search and are no amounts"
    )
    needs: ClassVar[str] = "harmful prompts"

    heads: int = 3
    vectors: int = 8
    mode: SilenceMode = "zero_out"
    key_value: KeyValueRule = "all_selected"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        check_head_settings(self.mode, self.key_value)
        if self.heads < 1 or self.vectors < 1:
            raise UsageError(f"Sahara needs at least 1 head and 1 vector, not {self.heads} and {self.vectors}.")

    def score(self, task: Task) -> UnitsFound:
        """Score every head by the order in which the search takes it; those that it takes are chosen."""
        groups, missing = scorable_heads(task.lm, self.key_value)
        everything = [(group.layer, head) for group in groups for head in range(group.size)]
        if self.heads > len(everything):
            raise UsageError(f"{self.heads} heads were asked for and there are {len(everything)}.")
        if self.vectors >= len(task.prompts):
            raise PromptError(
                f"{self.vectors} vectors need more than {self.vectors} prompts, not {len(task.prompts)}: the whole "
                "space has no angle to itself; give more prompts or set fewer vectors."
            )
        batches = prompt_batches(task.lm, task.prompts, task.batch_size)
        with silenced_heads(task.lm, groups, self.mode) as silenced, repeated_passes(task.lm) as passes:
            whole = leading_vectors(_states(passes, batches), self.vectors)
            taken: dict[Head, float] = {}
            for _ in range(self.heads):
                candidates = [head for head in everything if head not in taken]
                angles = {}
                for head, states in _without_each(passes, batches, silenced, candidates).items():
                    angles[head] = angle(whole, leading_vectors(states, self.vectors))
                best = max(candidates, key=angles.__getitem__)  # the first of equals
                taken[best] = angles[best]
                silenced.add(best)
        scores = ranked(angles, taken, largest=90.0 * self.vectors)
        notes = {
            "prompts_used": len(task.prompts),
            "order": [[*head, round(value, 4)] for head, value in taken.items()],
        } | ({"missing": missing} if missing else {})
        values = [torch.tensor([scores[group.layer, head] for head in range(group.size)]) for group in groups]
        chosen = [
            torch.tensor(sorted(head for layer, head in taken if layer == group.layer), dtype=torch.long)
            for group in groups
        ]
        return UnitsFound(groups, values, chosen, notes)


def ranked(angles: dict[Head, float], taken: dict[Head, float], largest: float) -> dict[Head, float]:
    """The score of each head: its angle in the last step, and for earlier steps `largest` more per step in between."""
    above = {head: (len(taken) - 1 - step) * largest + value for step, (head, value) in enumerate(taken.items())}
    return {**angles, **above}


def leading_vectors(states: torch.Tensor, vectors: int) -> torch.Tensor:
    """(n, vectors) fp64: left singular vectors of states (n, H) with the largest singular values."""
    left: torch.Tensor = torch.linalg.svd(states.double(), full_matrices=False).U
    return left[:, :vectors]


def angle(first: torch.Tensor, second: torch.Tensor) -> float:
    """Sum of the principal angles in degrees between the spaces of two sets of orthonormal columns."""
    return math.degrees(float(subspace_angles(first.cpu().numpy(), second.cpu().numpy()).sum()))


def _states(passes: Passes, batches: list[PromptBatch]) -> torch.Tensor:
    return torch.cat([passes.full(batch).state for batch in batches])


def _without_each(
    passes: Passes, batches: list[PromptBatch], silenced: Silenced, candidates: list[Head]
) -> dict[Head, torch.Tensor]:
    """The states (n, H) with each of the candidates silenced beside those that already are."""
    found: dict[Head, list[torch.Tensor]] = {head: [] for head in candidates}
    for batch in track(batches, "Heads"):
        passes.full(batch)
        for head in candidates:
            silenced.add(head)
            found[head].append(passes.again(head[0]).state)
            silenced.remove(head)
    return {head: torch.cat(states) for head, states in found.items()}
