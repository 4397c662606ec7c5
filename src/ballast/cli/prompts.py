"""The commands of `ballast prompts`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.options import Limit, Model, Opening, Seed, opens_models
from ballast.cli.output import show
from ballast.errors import UsageError
from ballast.evaluate.respond import respond
from ballast.prompts import load_prompts
from ballast.runs import JsonLines, write_text

prompts_app = typer.Typer(help="Prepare prompt sets.", no_args_is_help=True, rich_markup_mode=None)


@prompts_app.callback()
def _prompts() -> None:
    """Keeps `answer` a command of its own while it is the only one."""


@prompts_app.command()
@opens_models
def answer(
    model: Model,
    prompts: Annotated[str, typer.Argument(help="A prompt set; harmful unless --harmless.", metavar="SET")],
    out: Annotated[Path, typer.Option(help="New .jsonl file for the prompts with their responses.")],
    system: Annotated[str | None, typer.Option(help="System message under which the model answers.")] = None,
    harmless: Annotated[
        bool, typer.Option("--harmless", help="The prompts are harmless: keep answers instead of refusals.")
    ] = False,
    limit: Limit = None,
    seed: Seed = 0,
    *,
    opening: Opening,
) -> None:
    """Write the responses that a set lacks: the model's own refusals, of harmless prompts its answers."""
    if out.suffix != ".jsonl":
        raise UsageError(f"{out} is no name for prompts; end it with .jsonl.")
    if out.exists():
        raise UsageError(f"{out} is there already; give the name of a new file.")
    given = load_prompts(prompts, limit=limit, seed=seed)
    lm = opening.model(model)
    found = respond(lm, given, harmless=harmless, system=system)
    write_text(out, JsonLines.text(row.model_dump(mode="json", exclude_none=True) for row in found.prompts))
    counts = dataclasses.asdict(found) | {"prompts": len(found.prompts), "out": str(out)}
    reasons = "; ".join(f"{count} got none: {reason}" for reason, count in found.without.items())
    kind = "answers" if harmless else "refusals"
    kept = f"{found.written} {kind} written, {found.given} responses were there"
    show(counts, (), f"{kept}{'; ' if reasons else ''}{reasons}\nWritten to {out}")
