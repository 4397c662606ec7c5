"""One training of a copy of a model by the Trainer of transformers, with whatever guards its safety."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PrinterCallback, TrainerCallback

from ballast.models import LanguageModel
from ballast.prompts.chat import Rendered
from ballast.regions import Region
from ballast.runs import RunDirectory
from ballast.tune.anchor import Anchor
from ballast.tune.finetune_log import Log
from ballast.tune.finetune_settings import FinetuneSettings
from ballast.tune.lora import LoraSettings, adapted_modules, with_adapter
from ballast.tune.micro_batch import in_fitting_batches
from ballast.tune.rows import collated, with_refusals
from ballast.tune.safety_preserving import SafetyPreserving
from ballast.tune.states import StateTrainer, last_state
from ballast.tune.surgery import GradientSurgery


@dataclass(frozen=True)
class Training:
    """What is trained on what, and how.

    Attributes:
        lm: The model; it is left as it was.
        rows: What is learnt.
        refusals: Harmful prompts with refusals, if the settings ask for any.
        settings: How.
        run: Keeps how many rows fitted into memory.
        anchor: Weights that are pulled back.
        lora: Train an adapter only.
    """

    lm: LanguageModel
    rows: Sequence[Rendered]
    refusals: Sequence[Rendered]
    settings: FinetuneSettings
    run: RunDirectory
    anchor: Anchor | None
    lora: LoraSettings | None

    def run_through(self, steps: int, protect: Region | None, folder: Path) -> Any:
        """Train, continuing behind the last state in a folder.

        Args:
            steps: Optimizer steps in all.
            protect: What must not change. With LoRA that is seen to where the adapter is merged.
            folder: For the log and the states.

        Returns:
            The trained copy, a model of transformers in float32; with LoRA a model of PEFT.
        """
        settings = dataclasses.replace(self.settings, steps=steps)
        return in_fitting_batches(
            self.run,
            settings.batch_size,
            settings.micro_batch,
            lambda micro_batch: self._trained(settings, protect, folder, micro_batch),
            "cut the rows shorter (max_length), train with LoRA or use a larger machine",
        )

    def _trained(self, settings: FinetuneSettings, protect: Region | None, folder: Path, micro_batch: int) -> Any:
        model = self._copy()
        callbacks: list[TrainerCallback] = [Log(folder / "finetune.jsonl")]
        if settings.surgery_every:  # before the anchor, whose pull is no part of the task
            callbacks.append(
                GradientSurgery(self.refusals, self.lm.pad_id, every=settings.surgery_every, seed=settings.seed)
            )
        if self.anchor:
            callbacks.append(self.anchor)
        safety = SafetyPreserving(protect) if protect and not self.lora else None
        if safety:
            callbacks.append(safety)
        trainer = StateTrainer(
            model,
            settings.arguments(folder / "state", micro_batch, on_cpu=self.lm.device.type == "cpu"),
            train_dataset=with_refusals(self.rows, self.refusals, settings.mix, settings.seed),
            data_collator=lambda batch: collated(batch, self.lm.pad_id),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        state = last_state(folder / "state")
        if state and state.step == settings.steps:  # the Trainer would make one more step
            trainer._load_from_checkpoint(str(state.folder))
            if safety:
                safety.verify()
        else:
            trainer.train(resume_from_checkpoint=str(state.folder) if state else None)
        return model

    def _copy(self) -> Any:
        model = copy.deepcopy(self.lm.model).float()
        model.generation_config = GenerationConfig()  # a checkpoint's own may be one that cannot be saved
        return with_adapter(model, adapted_modules(self.lm), self.lora, self.settings.seed) if self.lora else model
