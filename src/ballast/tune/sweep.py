"""Harden once per region and weight of staying close, and keep the best by the select prompts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ballast.errors import NumericalError, UsageError
from ballast.models import LanguageModel
from ballast.patches import Patch
from ballast.prompts import PromptSet, PromptSets, as_prompt_set, as_prompt_sets
from ballast.regions import Region
from ballast.runs import RunDirectory, read_json, write_json
from ballast.tune.checks import Check, choose
from ballast.tune.harden import HARMLESS, PATCH, REFUSALS, SELECT_HARMFUL, SELECT_HARMLESS, harden
from ballast.tune.settings import HardenSettings

SWEEP = "sweep.json"


def harden_over(
    lm: LanguageModel,
    regions: Sequence[Region],
    help_weights: Sequence[float] = (HardenSettings.help_weight,),
    *,
    refusals: PromptSets = REFUSALS,
    harmless: PromptSets = HARMLESS,
    select_harmful: PromptSet | str = SELECT_HARMFUL,
    select_harmless: PromptSets = SELECT_HARMLESS,
    settings: HardenSettings | None = None,
    out: Path | str,
) -> Patch:
    """Harden with every combination, and keep the patch whose kept check is the best by the rule of a single run.

    That is the lowest attack success on the select prompts with over-refusal within the budget. A combination that
    breaks down or lowers nothing is a row too, with the reason.

    Args:
        lm: The model the regions were located on; its weights are the original ones again when the call returns.
        regions: Such as `[scores.select(share) for share in (0.003, 0.01, 0.03)]`.
        help_weights: Factors of the divergence from the original model; with the variant `reference_code`, which has
            none, leave them out.
        refusals: As for `harden`.
        harmless: As for `harden`.
        select_harmful: As for `harden`; they also choose among the combinations.
        select_harmless: As for `harden`.
        settings: As for `harden`; its `help_weight` is not used.
        out: Folder for `sweep.json` (one row per combination), `patch.safetensors` (the best) and a numbered folder
            per combination; the same call on the same folder continues.

    Returns:
        The best patch.

    Raises:
        UsageError: There is no combination, or there are several weights and the variant fixes them.
        NumericalError: No combination lowered attack success.
        BallastError: As `harden` raises it for any combination.
    """
    base, folder = settings or HardenSettings(), Path(out)
    weighted = [dataclasses.replace(base, help_weight=help_weight) for help_weight in help_weights]
    if base.variant == "reference_code" and len(weighted) > 1:
        raise UsageError(
            f"The variant reference_code fixes help_weight at {base.help_weight}, so there are no several to choose "
            "among; leave them out."
        )
    combinations = list(itertools.product(regions, weighted))
    if not combinations:
        raise UsageError("There is nothing to choose from; give at least one region and one help_weight.")
    tuned_on = (*as_prompt_sets(refusals), *as_prompt_sets(harmless))
    chosen_by = (as_prompt_set(select_harmful), *as_prompt_sets(select_harmless))
    shapes, fingerprints = {name: value.shape for name, value in lm.model.named_parameters()}, lm.fingerprints()
    for region in regions:
        region.check_model(fingerprints, shapes)
    run = RunDirectory.open(
        folder,
        "harden_over",
        base.recorded() | {"help_weight": [chosen.help_weight for chosen in weighted]},
        {
            "model": lm.identity(),
            "regions": [region.region_id for region in regions],
            "prompt_sets": {group.name: group.identity() for group in (*tuned_on, *chosen_by)},
        },
    )
    rows: list[dict[str, Any]] = read_json(folder / SWEEP)["rows"] if (folder / SWEEP).exists() else []
    for number, (region, chosen) in enumerate(combinations[len(rows) :], start=len(rows) + 1):
        row = {"folder": str(number), "entries": len(region), "share": region.density()}
        row["help_weight"] = chosen.help_weight
        try:
            harden(
                lm,
                region,
                refusals=refusals,
                harmless=harmless,
                select_harmful=select_harmful,
                select_harmless=select_harmless,
                settings=chosen,
                out=folder / str(number),
            )
            rows.append(row | _kept(read_json(folder / str(number) / "harden.json")))
        except NumericalError as error:
            rows.append(row | {"failed": str(error)})
        write_json(folder / SWEEP, {"chosen": None, "rows": rows})
    best = _best(rows, base.max_over_refusal_rise)
    patch = Patch.load(folder / best / PATCH)
    patch.save(folder / PATCH)
    write_json(folder / SWEEP, {"chosen": best, "rows": rows})
    run.finish()
    return patch


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    """What a row says of one combination, from its `harden.json`."""
    [kept] = [check for check in record["selection"] if check["step"] == record["chosen_step"]]
    said = {name: record[name] for name in ("steps", "over_refusal_rise", "target_reached", "seconds", "reason")}
    return {"untuned": record["selection"][0], "kept": kept, **said}


def _best(rows: Sequence[dict[str, Any]], budget: float) -> str:
    """The folder of the best row."""
    kept: dict[str, Check] = {row["folder"]: Check(**row["kept"]) for row in rows if "kept" in row}
    if not kept:
        raise NumericalError(f"No combination can be kept; the first one: {rows[0]['failed']}")
    untuned = next(Check(**row["untuned"]) for row in rows if "untuned" in row)
    best = choose([untuned, *kept.values()], budget)
    [folder] = [folder for folder, check in kept.items() if check is best]
    return folder
