"""`ballast validate`: whether a region carries safety."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ballast import pipeline
from ballast.cli.options import Limit, Model, Opening, Out, PatchFile, Seed, opens_models
from ballast.cli.output import GAP, interval, percent, show, table
from ballast.patches import Patch
from ballast.prompts import load_prompts
from ballast.regions import Region, carried
from ballast.validate import ValidateSettings, Validation
from ballast.validate import validate as validate_region
from ballast.validate.findings import label
from ballast.validate.records import SafetyEffect

UTILITY = ("builtin/answers",)


@opens_models
def validate(
    model: Model,
    region: Annotated[Path, typer.Argument(help="Region file, located on this model.")],
    out: Out,
    safety: Annotated[list[str] | None, typer.Option(help="Harmful prompts, held out; repeat for more sets.")] = None,
    overrefusal: Annotated[list[str] | None, typer.Option(help="Harmless prompts; repeat for more sets.")] = None,
    utility: Annotated[list[str] | None, typer.Option(help="Sets with responses; repeat for more sets.")] = None,
    located_on: Annotated[
        list[str] | None, typer.Option(help="Prompts the region was located on, if it does not say; repeat.")
    ] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Set the weights to 0.")] = False,
    noise: Annotated[
        list[float] | None, typer.Option(help="Noise of so many standard deviations; repeat for more doses.")
    ] = None,
    scale: Annotated[list[float] | None, typer.Option(help="Multiply the weights; repeat for more factors.")] = None,
    transplant: Annotated[
        str | None, typer.Option(help="Another model of the same shape: bring its weights in, and these into it.")
    ] = None,
    random: Annotated[
        int, typer.Option(help="Random regions to compare with; 20 for one dose, 20 more for each further one.", min=1)
    ] = ValidateSettings.random_regions,
    utility_margin: Annotated[
        float, typer.Option(help="Nats per token that the region may cost more than random ones.")
    ] = ValidateSettings.utility_margin,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens after which an answer is cut.", min=1)] = 48,
    judge: Annotated[str, typer.Option(help="Who judges the answers.")] = ValidateSettings.judge,
    limit: Limit = None,
    patch: PatchFile = None,
    seed: Seed = 0,
    *,
    opening: Opening,
) -> None:
    """Disturb a region, and random ones, and see what it does; without a disturbance --ablate --noise 0.38."""
    named = ablate or noise or scale or transplant
    settings = ValidateSettings(
        ablate=ablate or not named,
        noise=tuple(noise or (() if named else ValidateSettings.noise)),
        scale=tuple(scale or ()),
        random_regions=random,
        utility_margin=utility_margin,
        max_new_tokens=max_new_tokens,
        judge=judge,
        seed=seed,
    )
    sets = {
        "safety": safety or pipeline.SAFETY,
        "overrefusal": overrefusal or pipeline.OVER_REFUSAL,
        "utility": utility or UTILITY,
    }
    loaded = {use: [load_prompts(spec, limit=limit, seed=seed) for spec in specs] for use, specs in sets.items()}
    lm = opening.model(model)
    found = Region.load(region)
    if patch:  # the region was located on the model without it
        found.check_model(lm.fingerprints(), {name: value.shape for name, value in lm.model.named_parameters()})
        Patch.load(patch).apply(lm.model)
        found = carried(found, lm)
    other = opening._replace(revision=None).model(transplant) if transplant else None
    validation = validate_region(
        lm, found, transplant=other, located_on=located_on or (), settings=settings, out=out, **loaded
    )
    show(validation.model_dump(mode="json"), _tables(validation), _text(validation, out))


def _tables(validation: Validation) -> list[Table]:
    rates = [
        (
            f"{dose.question}, {label(dose)}",
            f"{effect.set} ({effect.counted})",
            percent(effect.undisturbed.rate),
            percent(effect.region.rate, effect.region.low, effect.region.high),
            _spread([100 * rate for rate in effect.random], 1),
            percent(effect.specific, effect.specific_low, effect.specific_high, "+"),
            f"{effect.corrected_p:.2g}" if isinstance(effect, SafetyEffect) else "-",
            f"{100 * effect.degenerate:.0f} / {100 * effect.random_degenerate:.0f}",
            str(effect.n),
        )
        for dose in validation.effects
        for effect in (*dose.safety, *dose.over_refusal)
    ]
    utility = [
        (
            f"{dose.question}, {label(dose)}",
            effect.set,
            f"{effect.undisturbed:.4f}",
            f"{effect.region:.4f}",
            _spread(effect.random, 4),
            f"{effect.excess:+.4f}{GAP}{interval(effect.low, effect.high)}",
            str(effect.n),
        )
        for dose in validation.effects
        for effect in dose.utility
    ]
    caption = (
        "Share of the verdict in brackets; random regions: mean (smallest to largest). "
        "p: rank among them and paired tests, after Holm; degenerate: region / random."
    )
    columns = ("disturbance", "set", "undisturbed, %", "region, % [95 %]", "random, %", "points beyond random", "p")
    utility_columns = ("disturbance", "set", "undisturbed", "region", "random", "lost beyond random", "n")
    return [
        table("Verdicts", (*columns, "degenerate, %", "n"), rates, words=2, caption=caption),
        table("Utility, nats per token", utility_columns, utility, words=2),
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f"{mean:.{digits}f}{GAP}({low:.{digits}f} to {high:.{digits}f})"


def _text(validation: Validation, out: Path) -> str:
    lines = [finding.sentence for finding in validation.findings]
    if not validation.held_out:
        sets = f" ({', '.join(validation.unknown)})" if validation.unknown else ""
        lines.append(f"It is not known which prompts the region was located on{sets}; name them with --located-on.")
    return "\n".join([*lines, f"Written to {out}; no answer and no disturbed model was kept."])
