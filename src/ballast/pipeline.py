"""Whole jobs in one call: measure, change the model, measure again, compare, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ballast.evaluate import compare, measure
from ballast.locate import Method, locate
from ballast.locate.esi import ExpectedSafetyImpact
from ballast.models import LanguageModel, open_model
from ballast.patches import Patch
from ballast.prompts import PromptSet, PromptSets, as_prompt_set, as_prompt_sets, load_prompts
from ballast.prompts.overlap import require_disjoint
from ballast.regions import Region, carried
from ballast.report import write_report
from ballast.runs import RunDirectory, write_json
from ballast.tune import Anchor, FinetuneSettings, HardenSettings, LoraSettings, finetune, harden
from ballast.tune.finetune import prepared, safety_data
from ballast.tune.harden import HARMLESS, REFUSALS

SAFETY = ("builtin/harmful/test",)
OVER_REFUSAL = ("builtin/twins/test", "builtin/ordinary/test")
UTILITY = ("builtin/answers", "builtin/choices")
LOCATING = "builtin/refusals"
LOCATING_LIMIT = 104
HARDENING_METHOD = ExpectedSafetyImpact(contrast="builtin/twins/tune")  # weights that tell harmful from harmless


def demo(
    out: Path | str,
    model: str | Path = "smollm2",
    *,
    method: Method = HARDENING_METHOD,
    fraction: float = 0.01,
    refusals: PromptSets = REFUSALS,
    harmless: PromptSets = HARMLESS,
    settings: HardenSettings | None = None,
    safety: Sequence[str] = SAFETY,
    overrefusal: Sequence[str] = OVER_REFUSAL,
    utility: Sequence[str] = UTILITY,
    seed: int = 0,
) -> Path:
    """Take a model through the main job; every step that an earlier call finished is left as it is.

    The region is located on built-in refusals, and the same refusals are the default that it is then tuned on, against
    the rule to keep the two apart: the built-in set is too small to set some aside. Neither holds what is measured on.

    Args:
        out: Folder of the run.
        model: As for `open_model`.
        method: Identification method.
        fraction: Share of the eligible weights to tune, in (0, 1]; they are taken from the upper half of the layers.
        refusals: As for `harden`.
        harmless: As for `harden`.
        settings: How to harden.
        safety: Harmful prompts to measure on; none of them may be used in locating or tuning.
        overrefusal: Harmless prompts to measure on.
        utility: Sets with responses or choices to measure on.
        seed: Of everything random.

    Returns:
        The report, one HTML file.

    Raises:
        BallastError: As the steps raise it.
    """
    folder = Path(out)
    chosen = settings or HardenSettings(seed=seed)
    lm = open_model(model)
    sets = {spec: load_prompts(spec) for spec in (*safety, *overrefusal, *utility)}
    training = {prompts.name: prompts for prompts in (*as_prompt_sets(refusals), *as_prompt_sets(harmless))}
    locating = load_prompts(LOCATING, limit=LOCATING_LIMIT, seed=seed)
    require_disjoint(({locating.name: locating} | training).values(), sets.values())
    run = RunDirectory.open(
        folder,
        "demo",
        {
            "method": method.name,
            **dataclasses.asdict(method),
            "fraction": fraction,
            "seed": seed,
            "harden": chosen.recorded(),
        },
        {
            "model": lm.identity(),
            "prompt_sets": {name: prompts.identity() for name, prompts in (sets | training).items()},
            "located_on": locating.identity(),
        },
    )
    measured = partial(measure, lm, safety=safety, overrefusal=overrefusal, utility=utility)
    if not run.is_done("measure before"):
        with run.step("measure before"):
            measured(out=folder / "before")
    if not run.is_done("locate"):
        with run.step("locate"):
            checkpoint = folder / "unfinished"
            scores = locate(lm, locating, method, seed=seed, checkpoint=checkpoint)
            save_region(scores.select(fraction, layers=upper_half(lm)), folder)
            checkpoint.unlink(missing_ok=True)
            del scores
    if not run.is_done("harden"):
        with run.step("harden"):
            region = Region.load(folder / "region.safetensors")
            patch = harden(lm, region, refusals=refusals, harmless=harmless, settings=chosen, out=folder / "harden")
            save_patch(patch, folder)
    if not run.is_done("measure after"):
        with run.step("measure after"):
            Patch.load(folder / "patch.safetensors").apply(lm.model)
            measured(out=folder / "after")
    if not run.is_done("compare"):
        with run.step("compare"):
            compare(folder / "before", folder / "after", out=folder)
    run.finish()
    return write_report(folder)


def finetune_and_measure(
    out: Path | str,
    model: str | Path,
    data: PromptSet | str,
    *,
    protect: Region | None,
    patch: Patch | None = None,
    anchor: Region | None = None,
    anchor_weight: float = 1.0,
    lora: LoraSettings | None = None,
    settings: FinetuneSettings | None = None,
    safety: Sequence[str] = SAFETY,
    overrefusal: Sequence[str] = OVER_REFUSAL,
    utility: Sequence[str] = UTILITY,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """Fine-tune with a protected region, and measure safety before and after; finished steps are left as they are.

    Args:
        out: Folder of the run; the checkpoint is `out/finetune/model`.
        model: As for `open_model`.
        data: As for `finetune`; none of its prompts may be measured on.
        protect: Located on `model`; its weights stay as they are.
        patch: Applied before anything else, such as one from `harden`; the region is carried over.
        anchor: Located on `model`; its weights are pulled back to where they were, see `Anchor.of_region`.
        anchor_weight: How strongly.
        lora: As for `finetune`.
        settings: As for `finetune`.
        safety: As for `demo`.
        overrefusal: As for `demo`.
        utility: As for `demo`.
        dtype: As for `open_model`; a patch is applied in the dtype it was made in.
        revision: As for `open_model`.
        trust_remote_code: As for `open_model`.
        allow_pickle: As for `open_model`.

    Returns:
        The report, one HTML file.

    Raises:
        BallastError: As the steps raise it.
    """
    folder, rows, chosen = Path(out), as_prompt_set(data), settings or FinetuneSettings()
    sets = {spec: load_prompts(spec) for spec in (*safety, *overrefusal, *utility)}
    tuned_on = {one.name: one for one in (rows, *safety_data(chosen))}
    require_disjoint(tuned_on.values(), sets.values())
    opened = partial(open_model, dtype=dtype, trust_remote_code=trust_remote_code)
    lm = opened(model, revision=revision, allow_pickle=allow_pickle)
    shapes = {name: value.shape for name, value in lm.model.named_parameters()}
    for region in filter(None, (protect, anchor)):
        region.check_model(lm.fingerprints(), shapes)
    if patch:
        patch.apply(lm.model)
        protect, anchor = (carried(region, lm) if region else None for region in (protect, anchor))
    anchored = Anchor.of_region(anchor, anchor_weight) if anchor else None
    prepared(lm, list(tuned_on.values()), chosen, protect, anchored, lora)  # refuses now what cannot be trained later
    run = RunDirectory.open(
        folder,
        "finetune_and_measure",
        chosen.record(),
        {
            "model": lm.identity(),
            "region": protect.region_id if protect else None,
            "anchor": anchored.identity() if anchored else None,
            "lora": dataclasses.asdict(lora) if lora else None,
            "prompt_sets": {name: prompts.identity() for name, prompts in (sets | tuned_on).items()},
        },
    )
    measured = partial(measure, safety=safety, overrefusal=overrefusal, utility=utility)
    if not run.is_done("measure before"):
        with run.step("measure before"):
            measured(lm, out=folder / "before")
    if not run.is_done("finetune"):
        with run.step("finetune"):
            if protect:
                write_json(folder / "region.json", protect.summary())
            finetune(lm, rows, protect=protect, anchor=anchored, lora=lora, out=folder / "finetune", settings=chosen)
    del lm
    if not run.is_done("measure after"):
        with run.step("measure after"):
            measured(opened(folder / "finetune" / "model"), out=folder / "after")
    if not run.is_done("compare"):
        with run.step("compare"):
            compare(folder / "before", folder / "after", out=folder)
    run.finish()
    return write_report(folder)


def upper_half(lm: LanguageModel) -> range:
    """The layers where hardening tunes: there a model tells harmful from harmless, and a step costs half as much."""
    layers = 1 + max(part.layer for part in lm.parts.eligible() if part.layer is not None)
    return range(layers // 2, layers)


def save_region(region: Region, folder: Path) -> None:
    """Write a region and its readable summary."""
    region.save(folder / "region.safetensors")
    write_json(folder / "region.json", region.summary())


def save_patch(patch: Patch, folder: Path) -> None:
    """Write a patch and its readable summary."""
    patch.save(folder / "patch.safetensors")
    write_json(folder / "patch.json", {**dataclasses.asdict(patch.info()), "base": patch.header.base.model_dump()})
