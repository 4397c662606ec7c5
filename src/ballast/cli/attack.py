"""`ballast attack`: how deep safety sits."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from ballast import pipeline
from ballast.cli.options import Model, Opening, Out, PatchFile, Seed, opens_models
from ballast.cli.output import AXES, percent, show, table
from ballast.prompts import load_prompts
from ballast.prompts.load import ATTACKS
from ballast.tune import AttackSettings, AttackStep, fine_tuning_attack


@opens_models
def attack(
    model: Model,
    out: Out,
    data: Annotated[list[str] | None, typer.Option(help="Rows to train on; repeat. Default: all built in.")] = None,
    safety: Annotated[list[str] | None, typer.Option(help="Harmful prompts to measure on; repeat.")] = None,
    overrefusal: Annotated[list[str] | None, typer.Option(help="Harmless prompts to measure on; repeat.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="Measure after this many optimizer steps; repeat.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Rate of AdamW.")] = AttackSettings.learning_rate,
    batch_size: Annotated[int, typer.Option(help="Rows of one step.")] = AttackSettings.batch_size,
    judge: Annotated[str, typer.Option(help="Who judges the answers.")] = AttackSettings.judge,
    patch: PatchFile = None,
    seed: Seed = 0,
    *,
    opening: Opening,
) -> None:
    """Train a copy on harmless rows that undo safety, and measure it; the copy is thrown away."""
    settings = AttackSettings(
        steps=tuple(sorted(set(steps))) if steps else AttackSettings.steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        judge=judge,
        seed=seed,
    )
    rows = [load_prompts(spec) for spec in data or [f"builtin/{kind}" for kind in ATTACKS]]
    lm = opening.model(model, patch)
    found = {
        one.name: fine_tuning_attack(
            lm,
            one,
            safety=safety or pipeline.SAFETY,
            overrefusal=overrefusal or pipeline.OVER_REFUSAL,
            settings=settings,
            out=out / one.slug,
        )
        for one in rows
    }
    value = {name: [step.model_dump(mode="json") for step in measured] for name, measured in found.items()}
    show(value, [_table(name, measured) for name, measured in found.items()], f"Written to {out}; no model was kept.")


def _table(name: str, measured: list[AttackStep]) -> Table:
    rows = [
        (AXES[result.axis], result.name, str(step.step), percent(result.rate, result.low, result.high), str(result.n))
        for position in range(len(measured[0].sets))
        for step in measured
        for result in [step.sets[position]]
    ]
    return table(f"Trained on {name}", ("rate", "set", "steps", "% [95 %]", "n"), rows, words=2)
