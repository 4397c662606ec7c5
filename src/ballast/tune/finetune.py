"""Fine-tune a model on data of one's own, with a safety region protected (SPA, arXiv 2604.08297)."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from ballast.errors import NumericalError, PromptError
from ballast.models import LanguageModel
from ballast.models.streaming import require_in_memory
from ballast.patches.export import export
from ballast.progress import track
from ballast.prompts import PromptSet, as_prompt_set
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered, render
from ballast.regions import Region
from ballast.runs import JsonLines, RunDirectory
from ballast.tune.finetune_settings import FinetuneSettings
from ballast.tune.safety_preserving import SafetyPreserving

IGNORED = -100  # label of tokens that are not learnt


def finetune(
    lm: LanguageModel,
    data: PromptSet | str,
    *,
    protect: Region | None,
    out: Path | str,
    settings: FinetuneSettings | None = None,
) -> Path:
    """Train all weights on prompts with responses, except those of a region.

    The Trainer of transformers does the work, in float32; the loss is the cross-entropy of the responses. Then the
    weights are cast back to the model's dtype, and the protected ones are the old ones, bit for bit.

    Args:
        lm: The model; it is left as it was.
        data: Rows with `prompt` and `response`.
        protect: What must not change; None trains everything, for comparison.
        out: Folder for `finetune.jsonl` (loss over the steps) and the checkpoint; the same call on the same folder
            continues.
        settings: See `FinetuneSettings`.

    Returns:
        The folder of the checkpoint, `out/model`.

    Raises:
        PromptError: A row has no response.
        RegionError: The region belongs to another model.
        ModelError: The model is streamed.
        NumericalError: The loss is not finite; the last state before is kept.
        RunError: The folder holds another run or cannot be written.
    """
    require_in_memory(lm.model.parameters())
    chosen, rows = settings or FinetuneSettings(), as_prompt_set(data)
    lessons = tokenized(lm, rows, chosen.max_length)
    run = RunDirectory.open(
        Path(out),
        "finetune",
        dataclasses.asdict(chosen),
        {
            "model": lm.identity(),
            "region": protect.region_id if protect else None,
            "prompt_sets": {rows.name: rows.identity()},
        },
    )
    checkpoint = run.path / "model"
    if run.is_done("train"):
        return checkpoint
    with run.step("train"):
        trained = copy.deepcopy(lm.model).float()
        trained.generation_config = GenerationConfig()  # a checkpoint's own may be one that cannot be saved
        callbacks: list[TrainerCallback] = [Log(run.path / "finetune.jsonl")]
        if protect:
            callbacks.append(SafetyPreserving(protect))
        trainer = Trainer(
            trained,
            _arguments(chosen, run.path / "state", on_cpu=lm.device.type == "cpu"),
            train_dataset=lessons,
            data_collator=lambda batch: collated(batch, lm.pad_id),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_last(run.path / "state"))
        result = LanguageModel(_like(trained, lm.model), lm.tokenizer, lm.source)
        export(result, None, checkpoint)
    run.finish()
    return checkpoint


def tokenized(lm: LanguageModel, rows: PromptSet, max_length: int) -> list[Rendered]:
    """Rows in the model's chat template, cut to a length.

    Raises:
        PromptError: A row has no response, or none of a response is left after the cut.
    """
    found = []
    for row in rows:
        if not row.response:
            raise PromptError(f"{rows.name}: {row.id} has no response; fine-tuning learns responses, so give each one.")
        ids, start = render(lm.tokenizer, row.prompt, row.response)
        if start >= max_length:
            raise PromptError(
                f"{rows.name}: the prompt {row.id} takes {start} of at most {max_length} tokens, which leaves none to "
                "its response; allow more or leave it out."
            )
        found.append(Rendered(ids[:max_length], start))
    return found


def collated(batch: Sequence[Rendered], pad_id: int) -> dict[str, torch.Tensor]:
    """A padded batch whose labels are the tokens of the responses."""
    tokens = collate(batch, pad_id)
    return {
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
        "labels": tokens.input_ids.masked_fill(~tokens.response_mask, IGNORED),
    }


class Log(TrainerCallback):
    """Keeps the loss of every step, shows how far training is, and stops where a loss is not finite."""

    def __init__(self, path: Path) -> None:
        """Continue the file at `path`."""
        self._lines = JsonLines(path)
        self._bar: Iterator[int] = iter(())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop what was logged behind the state that training continues from."""
        self._lines.keep(lambda row: row["step"] <= state.global_step)
        self._bar = track(range(state.global_step, args.max_steps), "Fine-tuning", state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        next(self._bar)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the bar."""
        next(self._bar, None)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write one row."""
        if logs is None or "loss" not in logs:
            return
        row: dict[str, float] = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
        if not all(map(math.isfinite, row.values())):
            raise NumericalError(f"The loss of step {state.global_step} is not finite; use a lower learning rate.")
        self._lines.append([{"step": state.global_step} | row])


def _arguments(settings: FinetuneSettings, folder: Path, *, on_cpu: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch,
        bf16=settings.mixed_precision,
        seed=settings.seed,
        save_steps=settings.save_every,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
        report_to=[],
    )


def _last(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _like(trained: PreTrainedModel, original: PreTrainedModel) -> PreTrainedModel:
    """The trained model in the dtypes and with the generation settings of the original."""
    for (_, after), (_, before) in zip(trained.named_parameters(), original.named_parameters(), strict=True):
        after.data = after.data.to(before.dtype)
    trained.config.dtype = original.config.dtype
    trained.generation_config = copy.deepcopy(original.generation_config)
    trained.eval()
    return trained
