"""Delta: |aligned - base|, what alignment moved most; knows the weights only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ballast.errors import UsageError
from ballast.locate.checkpoints.base_checkpoint import difference, open_base, unchanged
from ballast.locate.registry import Found, Task, register
from ballast.regions.metadata import Granularity


@register("delta")
@dataclass(frozen=True)
class Delta:
    """|aligned - base|; the model that is located in is the aligned one.

    Attributes:
        base: The checkpoint that alignment started from, as for `open_model`.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "control"
    fidelity: ClassVar[str] = "ours: absolute difference of two checkpoints in fp32; no prompt is read"
    needs: ClassVar[str] = "the base checkpoint"

    base: str = ""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not self.base:
            raise UsageError("The method delta compares with another checkpoint; give it as the setting base.")

    def score(self, task: Task) -> Found:
        """Score every eligible weight by how far alignment moved it."""
        base = open_base(task.lm, self.base)
        scores = difference(task.lm, base)
        notes = {"base_model": base.identity(), "unchanged": unchanged(task.lm, scores)}
        for value in scores.values():
            value.abs_()
        return Found(scores, notes)
