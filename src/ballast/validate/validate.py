"""Disturb a region, and random regions of the same size, and see what that does to safety and to utility."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ballast.errors import UsageError
from ballast.evaluate.measure import check_sets
from ballast.evaluate.pairing import Measurement
from ballast.evaluate.summary import Axis
from ballast.judges import get_judge
from ballast.models import LanguageModel
from ballast.models.streaming import require_in_memory
from ballast.prompts import PromptSet, PromptSets, answered, as_prompt_sets
from ballast.regions import Region
from ballast.runs import RunDirectory
from ballast.validate.cells import HeldOut
from ballast.validate.effects import Arms, dose_effect
from ballast.validate.findings import corrected, families, findings
from ballast.validate.held_out import check_held_out
from ballast.validate.plan import Dose, planned, random_region
from ballast.validate.records import Validation
from ballast.validate.settings import ValidateSettings


def validate(
    lm: LanguageModel,
    region: Region,
    *,
    safety: PromptSets,
    utility: PromptSets,
    overrefusal: PromptSets = (),
    transplant: LanguageModel | None = None,
    located_on: PromptSets = (),
    settings: ValidateSettings | None = None,
    out: Path | str,
) -> Validation:
    """Ask whether a region carries safety: is it needed for refusals, and does it bring them?

    Necessity: with the region disturbed, attack success on harmful prompts rises, more than undisturbed and more than
    with random regions of as many weights per matrix disturbed in the same way, and ordinary answers lose no more.
    Sufficiency, if another model is given: with the region of `lm` in it, that model refuses harmful prompts, more than
    before and more than with random regions of `lm`. Every disturbance is undone, and no model is ever written.

    Args:
        lm: The model the region was located on.
        region: The region.
        safety: Harmful prompts, not those the region was located on.
        utility: Sets with responses; the cost is counted in nats per token of these.
        overrefusal: Harmless prompts; measured and reported, no part of the verdicts.
        transplant: A model of the same architecture, such as the base of an aligned one: its values are brought into
            `lm`, and those of `lm` into it. It is asked in the chat format of `lm`.
        located_on: Prompts the region was located on, where it does not say so itself.
        settings: Disturbances, doses, number of random regions, see `ValidateSettings`.
        out: Folder for `validate.json` and a measurement per cell, with verdicts and without any answer. The same call
            on the same folder continues; doses and random regions may be added.

    Returns:
        Effects with intervals and p-values, and the verdicts.

    Raises:
        UsageError: There is nothing to do, or no harmful prompts or no utility.
        PromptError: The region was located on a prompt, or a set does not fit.
        RegionError: The region belongs to another model, or the other model has another architecture.
        ModelError: A model is streamed.
        RunError: The folder holds another run or cannot be written.
    """
    chosen, folder = settings or ValidateSettings(), Path(out)
    held_out, known, unknown = _held_out(region, chosen, safety, overrefusal, utility, located_on)
    for model in (lm, transplant) if transplant else (lm,):
        require_in_memory(model.model.parameters())
    region.check_model(lm.fingerprints(), {name: value.shape for name, value in lm.model.named_parameters()})
    doses = list(planned(lm, region, transplant, chosen))
    if not doses:
        raise UsageError("There is nothing to do; ablate, or give a dose of noise, a factor or another model.")
    run = RunDirectory.open(
        folder,
        "validate",
        chosen.record(),
        {
            "model": lm.identity(),
            "region": region.region_id,
            "transplant": transplant.identity() if transplant else None,
            "prompt_sets": {f"{axis}:{one.name}": one.identity() for axis, one in held_out.sets}
            | {f"utility:{one.name}": one.identity() for one in held_out.utility},
        },
    )
    effects = [dose_effect(dose, _measured(dose, held_out, chosen, folder / "cells")) for dose in doses]
    together = [corrected(family) for family in families(effects)]
    validation = Validation(
        model=lm.name,
        other=transplant.name if transplant else None,
        region_id=region.region_id,
        weights=len(region),
        settings=chosen.written(),
        held_out=known,
        unknown=unknown,
        effects=tuple(dose for family in together for dose in family),
        findings=tuple(one for family in together for one in findings(family, chosen.utility_margin)),
    )
    validation.save(folder)
    run.finish()
    return validation


def _held_out(
    region: Region,
    settings: ValidateSettings,
    safety: PromptSets,
    overrefusal: PromptSets,
    utility: PromptSets,
    located_on: PromptSets,
) -> tuple[HeldOut, bool, tuple[str, ...]]:
    """What every cell measures, and what is known of the prompts that the region was located on."""
    sets: list[tuple[Axis, PromptSet]] = [("safety", one) for one in as_prompt_sets(safety)]
    useful = [answered(one) for one in as_prompt_sets(utility)]
    if not sets or not useful:
        raise UsageError(
            "A verdict needs harmful prompts and ordinary answers, since what breaks a model ends its refusals too; "
            "give at least one set of each."
        )
    sets += [("over_refusal", one) for one in as_prompt_sets(overrefusal)]
    check_sets(sets, useful, [settings.judge])
    known, unknown = check_held_out(region, [*(one for _, one in sets), *useful], as_prompt_sets(located_on))
    return HeldOut(sets, useful, get_judge(settings.judge), settings.max_new_tokens), known, unknown


def _measured(dose: Dose, held_out: HeldOut, settings: ValidateSettings, cells: Path) -> Arms:
    """The cells of one dose; those that were measured before are read."""

    def disturbed(name: str, region: Callable[[], Region]) -> Measurement:
        return held_out.measured(
            dose.lm, f"{dose.slug} on {name}", cells / dose.slug / name, lambda: dose.disturb(region())
        )

    return Arms(
        undisturbed=held_out.measured(dose.lm, dose.undisturbed, cells / dose.undisturbed),
        region=disturbed("region", lambda: dose.region),
        random=[
            disturbed(f"random-{draw}", partial(random_region, dose.region, draw, settings.seed))
            for draw in range(settings.random_regions)
        ],
    )
