"""Settings of fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ballast.errors import UsageError

OPTIONS = ("mix", "surgery_every", "drifting", "probe_steps")  # off unless asked for; their defaults must not change


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
        mix: Share of the rows that are built-in refusals, in [0, 1); 0.03 is a common choice (arXiv 2309.07875).
        surgery_every: At every n-th step take out of the gradient what lowers the likelihood of built-in refusals; 0
            for never.
        drifting: Share of the region to protect, in [0, 1]: its weights that move most in an unprotected probe; 0 for
            all of it, without a probe.
        probe_steps: Steps of that probe.
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
    mix: float = 0.0
    surgery_every: int = 0
    drifting: float = 0.0
    probe_steps: int = 50

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name in ("steps", "batch_size", "micro_batch", "max_length", "save_every", "probe_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"The setting {name} is {getattr(self, name)}; it must be at least 1.")
        if not self.learning_rate > 0:
            raise UsageError(f"The setting learning_rate is {self.learning_rate}; it must be above 0.")
        if not self.weight_decay >= 0:
            raise UsageError(f"The setting weight_decay is {self.weight_decay}; it must not be negative.")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"The setting warmup is {self.warmup}; it is a share of the steps, in [0, 1).")
        if not 0 <= self.mix < 1:
            raise UsageError(f"The setting mix is {self.mix}; it is a share of the rows, in [0, 1).")
        if self.surgery_every < 0:
            raise UsageError(f"The setting surgery_every is {self.surgery_every}; it must not be negative.")
        if not 0 <= self.drifting <= 1:
            raise UsageError(f"The setting drifting is {self.drifting}; it is a share of the region, in [0, 1].")
        if self.batch_size % self.micro_batch:
            raise UsageError(
                f"A batch of {self.batch_size} rows has no whole number of micro-batches of {self.micro_batch}."
            )

    def record(self) -> dict[str, Any]:
        """What a manifest keeps: every setting, but of the options only those that are not at their defaults.

        So a run from before an option existed is still the same run.
        """
        plain = type(self)
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in OPTIONS or value != getattr(plain, name)
        }

    def arguments(self, folder: Path, micro_batch: int, *, on_cpu: bool) -> TrainingArguments:
        """The same for the Trainer of transformers, with states in `folder` and so many rows per backward pass."""
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=self.steps,
            learning_rate=self.learning_rate,
            warmup_steps=math.ceil(self.warmup * self.steps),
            weight_decay=self.weight_decay,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=self.batch_size // micro_batch,
            bf16=self.mixed_precision,
            seed=self.seed,
            save_steps=self.save_every,
            save_total_limit=1,
            logging_steps=1,
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            disable_tqdm=True,
            report_to=[],
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # with more the Trainer would give so many rows to each of them
        return arguments
