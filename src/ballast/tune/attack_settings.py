"""Settings of a fine-tuning attack."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ballast.errors import UsageError


@dataclass(frozen=True)
class AttackSettings:
    """How `fine_tuning_attack` trains and measures.

    Attributes:
        steps: Optimizer steps after which is measured, ascending; 0, the model before, is always measured.
        learning_rate: Constant rate of AdamW.
        batch_size: Rows of one step.
        max_length: Tokens after which a row is cut.
        max_new_tokens: Tokens after which a measured answer is cut.
        judge: Who judges the answers.
        seed: Of the order of the rows.
    """

    steps: tuple[int, ...] = (10, 50, 100)
    learning_rate: float = 2e-5
    batch_size: int = 8
    max_length: int = 512
    max_new_tokens: int = 48
    judge: str = "embedded"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if not self.steps or list(self.steps) != sorted({step for step in self.steps if step > 0}):
            raise UsageError(f"The steps {list(self.steps)} must be above 0 and ascend; give such as 10, 50 and 100.")
        for name in ("batch_size", "max_length", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"The setting {name} is {getattr(self, name)}; it must be at least 1.")
        if not self.learning_rate > 0:
            raise UsageError(f"The setting learning_rate is {self.learning_rate}; it must be above 0.")

    def record(self) -> dict[str, Any]:
        """What a manifest keeps: all but the steps, since later ones may be added to a run."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "steps"}
