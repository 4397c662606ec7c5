"""Fine-tune a model on data of one's own, with a safety region protected (SPA, arXiv 2604.08297)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PrinterCallback, Trainer, TrainerCallback

from ballast.models import LanguageModel
from ballast.models.streaming import require_in_memory
from ballast.patches.export import export
from ballast.prompts import PromptSet, as_prompt_set, load_prompts
from ballast.prompts.attacks import require_no_attack
from ballast.prompts.chat import Rendered
from ballast.regions import Region
from ballast.runs import RunDirectory
from ballast.tune.finetune_log import Log, last_state
from ballast.tune.finetune_settings import FinetuneSettings
from ballast.tune.micro_batch import in_fitting_batches
from ballast.tune.rows import collated, tokenized, with_refusals
from ballast.tune.safety_preserving import SafetyPreserving

REFUSALS = "builtin/refusals"  # what is mixed in


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
            continues. Where memory runs out, `run.json` says under `micro_batch` how many rows fitted.
        settings: See `FinetuneSettings`.

    Returns:
        The folder of the checkpoint, `out/model`.

    Raises:
        PromptError: A row has no response, or is of a built-in attack.
        RegionError: The region belongs to another model.
        ModelError: The model is streamed.
        NumericalError: The loss is not finite; the message names the last state before, which is kept.
        UsageError: Not even one row fits into memory.
        RunError: The folder holds another run or cannot be written.
    """
    require_in_memory(lm.model.parameters())
    chosen, rows = settings or FinetuneSettings(), as_prompt_set(data)
    require_no_attack(rows)
    sets = [rows, *mixed_in(chosen)]
    lessons, *refusals = (tokenized(lm, one, chosen.max_length) for one in sets)
    if refusals:
        lessons = with_refusals(lessons, refusals[0], chosen.mix, chosen.seed)
    run = RunDirectory.open(
        Path(out),
        "finetune",
        chosen.record(),
        {
            "model": lm.identity(),
            "region": protect.region_id if protect else None,
            "prompt_sets": {one.name: one.identity() for one in sets},
        },
    )
    checkpoint = run.path / "model"
    if run.is_done("train"):
        return checkpoint
    with run.step("train"):
        trained = in_fitting_batches(
            run,
            chosen.batch_size,
            chosen.micro_batch,
            lambda micro_batch: _trained(lm, lessons, protect, chosen, micro_batch, run.path),
        )
        result = LanguageModel(_like(trained, lm.model), lm.tokenizer, lm.source)
        export(result, None, checkpoint)
    run.finish()
    return checkpoint


def mixed_in(settings: FinetuneSettings) -> list[PromptSet]:
    """The built-in refusals if any are mixed in; what is measured on must share no prompt with them."""
    return [load_prompts(REFUSALS)] if settings.mix else []


def _trained(
    lm: LanguageModel,
    lessons: Sequence[Rendered],
    protect: Region | None,
    settings: FinetuneSettings,
    micro_batch: int,
    folder: Path,
) -> PreTrainedModel:
    """A trained copy of the model in float32, continuing behind the last state in the folder."""
    trained: PreTrainedModel = copy.deepcopy(lm.model).float()
    trained.generation_config = GenerationConfig()  # a checkpoint's own may be one that cannot be saved
    callbacks: list[TrainerCallback] = [Log(folder / "finetune.jsonl")]
    if protect:
        callbacks.append(SafetyPreserving(protect))
    trainer = Trainer(
        trained,
        settings.arguments(folder / "state", micro_batch, on_cpu=lm.device.type == "cpu"),
        train_dataset=lessons,
        data_collator=lambda batch: collated(batch, lm.pad_id),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_state(folder / "state"))
    return trained


def _like(trained: PreTrainedModel, original: PreTrainedModel) -> PreTrainedModel:
    """The trained model in the dtypes and with the generation settings of the original."""
    for (_, after), (_, before) in zip(trained.named_parameters(), original.named_parameters(), strict=True):
        after.data = after.data.to(before.dtype)
    trained.config.dtype = original.config.dtype
    trained.generation_config = copy.deepcopy(original.generation_config)
    trained.eval()
    return trained
