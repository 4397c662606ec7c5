"""`ballast harden`, `ballast finetune`, and the main job in one command, `demo`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ballast import pipeline
from ballast.cli.options import Model, Opening, Out, PatchFile, Seed, opens_models
from ballast.cli.output import percent, show, table
from ballast.errors import UsageError
from ballast.patches import Patch
from ballast.patches.export import export
from ballast.patches.folder import require_unused
from ballast.pipeline import OVER_REFUSAL, SAFETY, UTILITY
from ballast.regions import Region, carried
from ballast.runs import RunDirectory, read_json
from ballast.tune import FinetuneSettings, HardenSettings, LoraSettings, harden_over, merge_projected, merge_protected
from ballast.tune import harden as harden_model
from ballast.tune.harden import HARMLESS, REFUSALS, SELECT_HARMFUL, SELECT_HARMLESS
from ballast.tune.safe_lora import THRESHOLD
from ballast.tune.settings import Objective, Variant


@opens_models
def harden(
    model: Model,
    region: Annotated[list[Path], typer.Argument(help="Region file, located on this model; several to choose among.")],
    out: Out,
    refusals: Annotated[list[str] | None, typer.Option(help="Harmful prompts to refuse; repeat for more sets.")] = None,
    harmless: Annotated[list[str] | None, typer.Option(help="Harmless prompts; repeat for more sets.")] = None,
    select_harmful: Annotated[str, typer.Option(help="Harmful prompts on which the step is chosen.")] = SELECT_HARMFUL,
    select_harmless: Annotated[list[str] | None, typer.Option(help="Harmless prompts for the same; repeat.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = HardenSettings.steps,
    learning_rate: Annotated[
        float | None, typer.Option(help=f"Peak rate of AdamW, {HardenSettings.learning_rate:g} if not given.")
    ] = None,
    help_weight: Annotated[
        list[float] | None, typer.Option(help="Weight of staying close, 24 if not given; several to choose among.")
    ] = None,
    max_over_refusal_rise: Annotated[
        float, typer.Option(help="Budget on the harmless select prompts, as a share.")
    ] = HardenSettings.max_over_refusal_rise,
    target_asr: Annotated[
        float | None, typer.Option(help="Stop at this attack success on the select prompts, within the budget.")
    ] = None,
    objective: Annotated[
        Objective, typer.Option(help="cross_entropy, or preference over the model's own answers.")
    ] = HardenSettings.objective,
    variant: Annotated[
        Variant, typer.Option(help="ours, or reference_code: as the authors' first code does, for comparison.")
    ] = HardenSettings.variant,
    seed: Seed = 0,
    *,
    opening: Opening,
) -> None:
    """Teach refusal by tuning only the weights of a region; writes patch.safetensors."""
    settings = HardenSettings.of_given(
        steps=steps,
        learning_rate=learning_rate,
        help_weight=help_weight[0] if help_weight else None,
        max_over_refusal_rise=max_over_refusal_rise,
        target_asr=target_asr,
        objective=objective,
        variant=variant,
        seed=seed,
    )
    weights = help_weight or [settings.help_weight]
    lm = opening.model(model)
    regions = [Region.load(path) for path in region]
    prompts: dict[str, Any] = {
        "refusals": refusals or REFUSALS,
        "harmless": harmless or HARMLESS,
        "select_harmful": select_harmful,
        "select_harmless": select_harmless or SELECT_HARMLESS,
    }
    if len(regions) == len(weights) == 1:
        patch, kept = harden_model(lm, regions[0], **prompts, settings=settings, out=out), out
        said, rows = "", []
    else:
        patch = harden_over(lm, regions, weights, **prompts, settings=settings, out=out)
        sweep = read_json(out / "sweep.json")
        kept, rows = out / sweep["chosen"], sweep["rows"]
        said = f"Combination {sweep['chosen']} is the best on the select prompts.\n"
    pipeline.save_patch(patch, out)
    info, record = dataclasses.asdict(patch.info()), read_json(kept / "harden.json")
    show(
        info
        | {"base": patch.header.base.model_dump(), "step": record["chosen_step"], "combinations": rows}
        | {name: record[name] for name in ("reason", "target_reached", "steps", "over_refusal_rise", "seconds")},
        [_combinations(rows)] if rows else (),
        f"{said}Step {record['chosen_step']} was kept: {record['reason']}.\n"
        f"{record['steps']} steps, {record['seconds']:,.0f} seconds, over-refusal on the select prompts "
        f"{100 * record['over_refusal_rise']:+.1f} points.\n"
        f"{info['entries']:,} weights tuned{_beside(record)}; written to {out / 'patch.safetensors'}",
    )


def _combinations(rows: list[dict[str, Any]]) -> Table:
    """The rows of a sweep."""
    columns = ("combination", "outcome", "weights", "weight of staying close", "attack success, %", "over-refusal, %")
    cells = []
    for row in rows:
        kept = row.get("kept", {})
        outcome = f"step {kept['step']}" if kept else row["failed"]
        rates = [percent(kept.get(name)) for name in ("attack_success_rate", "over_refusal")]
        cells.append((row["folder"], outcome, f"{row['entries']:,}", f"{row['help_weight']:g}", *rates))
    return table("Combinations, by the select prompts", columns, cells, words=2)


def _beside(record: dict[str, Any]) -> str:
    """What was trained that is not in the region."""
    count = record["trained_norms_and_biases"]
    return f", {count:,} of them in norms and biases" if count else ""


@opens_models
def finetune(
    model: Model,
    data: Annotated[str, typer.Option(help="Prompts with responses: a file or the name of a set.")],
    out: Out,
    protect: Annotated[Path | None, typer.Option(help="Region file whose weights stay as they are.")] = None,
    patch: PatchFile = None,
    unprotected: Annotated[bool, typer.Option("--unprotected", help="Train everything, for comparison.")] = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = FinetuneSettings.steps,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of AdamW.")] = FinetuneSettings.learning_rate,
    batch_size: Annotated[int, typer.Option(help="Rows of one step.")] = FinetuneSettings.batch_size,
    micro_batch: Annotated[int, typer.Option(help="Rows per backward pass.")] = FinetuneSettings.micro_batch,
    max_length: Annotated[int, typer.Option(help="Tokens after which a row is cut.")] = FinetuneSettings.max_length,
    mix: Annotated[float, typer.Option(help="Share of the rows that are built-in refusals, such as 0.03.")] = 0.0,
    surgery_every: Annotated[
        int, typer.Option(help="At every n-th step remove what lowers the likelihood of refusals; 0: never.")
    ] = FinetuneSettings.surgery_every,
    drifting: Annotated[
        float, typer.Option(help="Protect only this share of the region, which moves most in a probe; 0: all of it.")
    ] = FinetuneSettings.drifting,
    anchor: Annotated[Path | None, typer.Option(help="Region file whose weights are pulled back.")] = None,
    anchor_weight: Annotated[float | None, typer.Option(help="How strongly they are, 1 if not given.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter, and merge it.")] = False,
    lora_rank: Annotated[int | None, typer.Option(help=f"Its rank, {LoraSettings.rank} if not given.")] = None,
    lora_alpha: Annotated[int | None, typer.Option(help=f"Its alpha, {LoraSettings.alpha} if not given.")] = None,
    safety: Annotated[list[str] | None, typer.Option(help="Harmful prompts to measure on; repeat.")] = None,
    overrefusal: Annotated[list[str] | None, typer.Option(help="Harmless prompts to measure on; repeat.")] = None,
    utility: Annotated[list[str] | None, typer.Option(help="Responses or choices to measure on; repeat.")] = None,
    seed: Seed = 0,
    *,
    opening: Opening,
) -> None:
    """Fine-tune on your own data while a region keeps its bits; safety is measured before and after."""
    if (protect is None) != unprotected:
        raise UsageError("Give --protect REGION, or --unprotected to train every weight.")
    adapter = {name: value for name, value in (("rank", lora_rank), ("alpha", lora_alpha)) if value is not None}
    if adapter and not lora:
        raise UsageError("The options --lora-rank and --lora-alpha are of an adapter; give --lora too.")
    if anchor_weight is not None and not anchor:
        raise UsageError("The option --anchor-weight is of weights that are anchored; give --anchor REGION too.")
    settings = FinetuneSettings(
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        micro_batch=micro_batch,
        max_length=max_length,
        seed=seed,
        mix=mix,
        surgery_every=surgery_every,
        drifting=drifting,
    )
    region = Region.load(protect) if protect else None
    changed = Patch.load(patch) if patch else None
    page = pipeline.finetune_and_measure(
        out,
        model,
        data,
        protect=region,
        patch=changed,
        anchor=Region.load(anchor) if anchor else None,
        anchor_weight=1.0 if anchor_weight is None else anchor_weight,
        lora=LoraSettings(**adapter) if lora else None,
        settings=settings,
        safety=safety or SAFETY,
        overrefusal=overrefusal or OVER_REFUSAL,
        utility=utility or UTILITY,
        **opening._asdict(),
    )
    checkpoint = out / "finetune" / "model"
    whole = Region.load(out / "finetune" / "protected.safetensors") if drifting else region
    kept = f"{len(whole):,} weights kept their bits. " if whole else ""
    show({"checkpoint": str(checkpoint), "report": str(page)}, (), f"{kept}Checkpoint: {checkpoint}\nReport: {page}")


@opens_models
def merge(
    model: Model,
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter that PEFT saved.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; must be new or empty.")],
    protect: Annotated[Path | None, typer.Option(help="Region file whose weights stay as they are.")] = None,
    safe_lora: Annotated[
        str | None, typer.Option(help="What alignment started from: project updates that leave alignment (Safe LoRA).")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help=f"Cosine up to which they are projected, {THRESHOLD} if not given.")
    ] = None,
    patch: PatchFile = None,
    *,
    opening: Opening,
) -> None:
    """Merge a LoRA adapter while a region keeps its bits, or with Safe LoRA's projection; writes a plain checkpoint."""
    if (protect is None) == (safe_lora is None):
        raise UsageError("Give --protect REGION or --safe-lora BASE, one of the two.")
    if threshold is not None and not safe_lora:
        raise UsageError("The option --threshold is of the projection; give --safe-lora BASE too.")
    require_unused(out, "checkpoint")
    lm = opening.model(model)
    region = Region.load(protect) if protect else None
    if region:
        region.check_model(lm.fingerprints(), {name: value.shape for name, value in lm.model.named_parameters()})
    if patch:
        Patch.load(patch).apply(lm.model)
        region = carried(region, lm) if region else None
    if safe_lora:
        found = merge_projected(lm, adapter, safe_lora, threshold=THRESHOLD if threshold is None else threshold)
        value = dataclasses.asdict(found)
        said = f"The updates of {found.projected} of {found.modules} modules were projected"
        said += f"; {found.undefined} have no direction of alignment." if found.undefined else "."
    else:
        assert region is not None
        kept = merge_protected(lm, adapter, region)
        value = {"kept": kept, "protected": len(region)}
        said = f"{kept:,} of {len(region):,} protected weights would have changed and did not."
    export(lm, None, out)
    show({"checkpoint": str(out), **value}, (), f"{said} Checkpoint: {out}")


def demo(
    model: Annotated[str, typer.Argument(metavar="[MODEL]")] = "smollm2",
    out: Out = Path("runs/demo"),
    fraction: Annotated[float, typer.Option(help="Share of the eligible weights, in (0, 1].")] = 0.01,
    seed: Seed = 0,
) -> None:
    """The main job: measure, locate, harden, measure again, report."""
    finished = RunDirectory.state_of(out) == "done"
    page = pipeline.demo(out, model, fraction=fraction, seed=seed)
    show(
        {"report": str(page)},
        (),
        ("Nothing is left to do; delete the folder to start again. " if finished else "") + f"Report: {page}",
    )
