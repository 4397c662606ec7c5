"""Settings of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from ballast.errors import UsageError


@dataclass(frozen=True)
class FinetuneSettings:
    """How `finetune` trains.

    Attributes:
        steps: Optimizer steps; the paper's 1,000.
        learning_rate: Peak rate of AdamW; then it falls linearly to zero.
        warmup: Share of the steps in which it rises.
        batch_size: Rows of one step.
        micro_batch: Rows per backward pass.
        weight_decay: Decoupled decay.
        max_length: Tokens after which a row is cut.
        mixed_precision: Compute in bfloat16, with weights in float32.
        save_every: Steps between two states from which an interrupted run continues.
        seed: Of the order of the rows.
    """

    steps: int = 1000
    learning_rate: float = 1e-5
    warmup: float = 0.03
    batch_size: int = 8
    micro_batch: int = 8
    weight_decay: float = 0.0
    max_length: int = 1024
    mixed_precision: bool = True
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name in ("steps", "batch_size", "micro_batch", "max_length", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"The setting {name} is {getattr(self, name)}; it must be at least 1.")
        if not self.learning_rate > 0:
            raise UsageError(f"The setting learning_rate is {self.learning_rate}; it must be above 0.")
        if not self.weight_decay >= 0:
            raise UsageError(f"The setting weight_decay is {self.weight_decay}; it must not be negative.")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"The setting warmup is {self.warmup}; it is a share of the steps, in [0, 1).")
        if self.batch_size % self.micro_batch:
            raise UsageError(
                f"A batch of {self.batch_size} rows has no whole number of micro-batches of {self.micro_batch}."
            )
