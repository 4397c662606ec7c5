"""Fine-tune a model on data of one's own, with a safety region protected (SPA, arXiv 2604.08297)."""

from __future__ import annotations

import copy
import dataclasses
import gc
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from ballast.errors import UsageError
from ballast.models import LanguageModel
from ballast.models.streaming import require_in_memory
from ballast.patches.export import export
from ballast.patches.folder import require_unused
from ballast.prompts import PromptSet, as_prompt_set, load_prompts
from ballast.prompts.attacks import require_no_attack
from ballast.prompts.chat import Rendered
from ballast.regions import Region
from ballast.runs import RunDirectory
from ballast.tune.anchor import Anchor
from ballast.tune.drifting import drifting
from ballast.tune.finetune_settings import FinetuneSettings
from ballast.tune.lora import LoraSettings, require_peft, save_adapter
from ballast.tune.merge import merge_adapter, merge_protected
from ballast.tune.rows import tokenized
from ballast.tune.safety_preserving import require_values
from ballast.tune.training import Training

REFUSALS = "builtin/refusals"  # what safety is taught with


def finetune(
    lm: LanguageModel,
    data: PromptSet | str,
    *,
    protect: Region | None,
    out: Path | str,
    anchor: Anchor | None = None,
    lora: LoraSettings | None = None,
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
        anchor: Weights that are pulled back to where they were.
        lora: Train an adapter in the place of all weights. It is kept in `out/adapter` and merged into the checkpoint,
            where the protected weights keep their bits.
        settings: See `FinetuneSettings`.

    Returns:
        The folder of the checkpoint, `out/model`.

    Raises:
        PromptError: A row has no response, or is of a built-in attack.
        RegionError: The region belongs to another model.
        ModelError: The model is streamed.
        NumericalError: The loss is not finite; the message names the last state before, which is kept.
        UsageError: Options do not fit each other, or not even one row fits into memory.
        RunError: The folder holds another run or cannot be written.
        PatchError: The folder of a new run holds a checkpoint already.
    """
    chosen, rows, folder = settings or FinetuneSettings(), as_prompt_set(data), Path(out)
    sets = [rows, *safety_data(chosen)]
    lessons, *refusals = prepared(lm, sets, chosen, protect, anchor, lora)
    if RunDirectory.state_of(folder) is None:  # in a run's own folder all of these are its own, and replaced
        for name in ("model", "adapter", "state"):
            require_unused(folder / name, "checkpoint")
    run = RunDirectory.open(
        folder,
        "finetune",
        chosen.record(),
        {
            "model": lm.identity(),
            "region": protect.region_id if protect else None,
            "anchor": anchor.identity() if anchor else None,
            "lora": dataclasses.asdict(lora) if lora else None,
            "prompt_sets": {one.name: one.identity() for one in sets},
        },
    )
    checkpoint = run.path / "model"
    if run.is_done("train"):
        return checkpoint
    training = Training(lm, lessons, refusals[0] if refusals else [], chosen, run, anchor, lora)
    if protect and chosen.drifting:
        protect = _most_drifting(training, protect)
    with run.step("train"):
        trained = training.run_through(chosen.steps, protect, run.path)
        if lora:
            save_adapter(trained, run.path / "adapter")
            del trained
            gc.collect()  # trainers hold themselves
            result = _merged(lm, run.path / "adapter", protect)
        else:
            result = LanguageModel(_like(trained, lm.model), lm.tokenizer, lm.source)
        shutil.rmtree(checkpoint, ignore_errors=True)  # of a call that was killed before it could say that it is done
        export(result, None, checkpoint)
    run.finish()
    return checkpoint


def safety_data(settings: FinetuneSettings) -> list[PromptSet]:
    """The built-in refusals if any are trained with; what is measured on must share no prompt with them."""
    return [load_prompts(REFUSALS)] if settings.mix or settings.surgery_every else []


def prepared(
    lm: LanguageModel,
    sets: Sequence[PromptSet],
    settings: FinetuneSettings,
    protect: Region | None,
    anchor: Anchor | None,
    lora: LoraSettings | None,
) -> list[list[Rendered]]:
    """Everything that `finetune` refuses before it works; and the rows of each set, as they will be learnt.

    Raises:
        BallastError: As `finetune`.
    """
    require_in_memory(lm.model.parameters())
    _check(settings, protect, anchor, lora)
    require_no_attack(sets[0])
    if protect and lora:  # the merge adds to the weights as they are, so their dtype must be that of the region too
        shapes = {name: value.shape for name, value in lm.model.named_parameters()}
        protect.check_model(lm.fingerprints(), shapes)
    elif protect:
        require_values(protect, lm.model)
    return [tokenized(lm, one, settings.max_length) for one in sets]


def _check(
    settings: FinetuneSettings, protect: Region | None, anchor: Anchor | None, lora: LoraSettings | None
) -> None:
    if settings.drifting and not protect:
        raise UsageError("The most drifting weights are taken from a region; give one to protect.")
    if lora:
        require_peft()
    if lora and (anchor or settings.drifting):
        raise UsageError(
            "With LoRA the model's own weights do not move while training, so nothing can be anchored or probed for "
            "drift; leave these options out, or train all weights."
        )
    if protect and anchor and not settings.drifting and not anchor.reaches_beyond(protect):
        raise UsageError("All weights to anchor are protected and cannot move; anchor others, or protect fewer.")


def _most_drifting(training: Training, region: Region) -> Region:
    """The part of a region that an unprotected probe moves most; the probe is thrown away, the region kept."""
    run, settings = training.run, training.settings
    file, folder = run.path / "protected.safetensors", run.path / "probe"
    if not run.is_done("probe"):
        with run.step("probe"):
            trained = training.run_through(settings.probe_steps, None, folder)
            after = LanguageModel(trained, training.lm.tokenizer, training.lm.source)
            drifting(region, training.lm, after, settings.drifting).save(file)
            del trained, after
            gc.collect()  # trainers hold themselves
            shutil.rmtree(folder)
    return Region.load(file)


def _merged(lm: LanguageModel, adapter: Path, protect: Region | None) -> LanguageModel:
    """A copy of the model with the adapter in it."""
    result = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, lm.source)
    if protect:
        merge_protected(result, adapter, protect)
    else:
        merge_adapter(result, adapter)
    return result


def _like(trained: PreTrainedModel, original: PreTrainedModel) -> PreTrainedModel:
    """The trained model in the dtypes and with the generation settings of the original."""
    for (_, after), (_, before) in zip(trained.named_parameters(), original.named_parameters(), strict=True):
        after.data = after.data.to(before.dtype)
    trained.config.dtype = original.config.dtype
    trained.generation_config = copy.deepcopy(original.generation_config)
    trained.eval()
    return trained
