"""`ballast locate`, and the lists of methods and prompt sets."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Annotated, Any

import typer

from ballast import pipeline
from ballast.cli.options import Limit, Model, Opening, Out, Seed, Stream, opens_models
from ballast.cli.output import show, table
from ballast.errors import UsageError
from ballast.locate import METHODS, WeightScores, get_method
from ballast.locate import locate as locate_scores
from ballast.locate.registry import reads_responses
from ballast.prompts import answered, available_sets, load_prompts
from ballast.regions import Region, exact_fraction, refine
from ballast.regions.refine import union_of
from ballast.regions.selection import DEFAULT_FRACTION, Scope
from ballast.regions.unit_selection import UnitScope
from ballast.runs import RunDirectory, read_json, write_json


def _listed(wanted: bool) -> None:
    if wanted:
        methods()
        raise typer.Exit


@opens_models
def locate(
    model: Model,
    out: Out,
    prompts: Annotated[str, typer.Option(help="Harmful prompts.")] = pipeline.LOCATING,
    method: Annotated[str, typer.Option(help="See `ballast methods`.")] = "esi",
    setting: Annotated[list[str] | None, typer.Option(help="A setting of the method, name=value; repeat.")] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Share of what is scored, in (0, 1]; 0.01, or the method's own choice.")
    ] = None,
    of_all: Annotated[
        bool, typer.Option("--of-all", help="The fraction is one of all parameters, embeddings included.")
    ] = False,
    scope: Annotated[
        str | None,
        typer.Option(help="global, per_layer, per_tensor or per_row; of units per_kind, per_layer or global."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Select from these layers only, such as 15-29.")] = None,
    utility: Annotated[
        list[str] | None, typer.Option(help="Harmless prompts with answers: leave out what these need; repeat.")
    ] = None,
    utility_fraction: Annotated[
        float | None, typer.Option(help="Share found per utility set; 0.04, of units the same as --fraction.")
    ] = None,
    refill: Annotated[bool, typer.Option(help="Replace what was left out by the next best.")] = False,
    limit: Limit = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Rows per backward pass.", min=1)] = 8,
    checkpoint_seconds: Annotated[float, typer.Option(help="Least seconds between two saves of the state.")] = 60.0,
    *,
    opening: Opening,
    stream: Stream = False,
    list_methods: Annotated[
        bool, typer.Option("--list", help="List the methods and exit.", is_eager=True, callback=_listed)
    ] = False,
) -> None:
    """Find the weights that matter most for safety; writes region.safetensors."""
    chosen = get_method(method, **_settings(setting or []))
    for share in (fraction, utility_fraction):
        if share is not None:
            exact_fraction(share)
    if utility_fraction is None:
        utility_fraction = 0.04 if chosen.granularity == "weight" else fraction
    if of_all and chosen.granularity != "weight":
        raise UsageError(f"{method} scores {chosen.granularity}s; --of-all is for methods that score weights.")
    ranked, within = _scope(scope), _layers(layers)
    lm = opening.model(model, stream=stream)
    prompt_set = load_prompts(prompts, limit=limit, seed=seed)
    utility_sets = {name: load_prompts(name, limit=limit, seed=seed) for name in utility or []}
    if reads_responses(chosen):  # general refusals, the default for harmful prompts, would be read as usefulness
        utility_sets = {name: answered(found) for name, found in utility_sets.items()}
    settings = {
        "method": method,
        **dataclasses.asdict(chosen),
        "fraction": fraction,
        "scope": scope,
        "layers": layers,
        "seed": seed,
        "batch_size": batch_size,
    }
    if of_all:
        settings["of_all"] = True
    if utility_sets:
        settings |= {"utility_fraction": utility_fraction, "refill": refill}
    inputs = {"model": lm.identity(), "prompts": prompt_set.identity()}
    inputs |= {f"utility:{name}": found.identity() for name, found in utility_sets.items()}
    run = RunDirectory.open(out, "locate", settings, inputs)
    checkpoint = out / "unfinished"
    scored = functools.partial(
        locate_scores,
        lm,
        method=chosen,
        seed=seed,
        batch_size=batch_size,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
    )
    for number, found in enumerate(utility_sets.values()):
        if not run.is_done(f"utility {number}"):
            with run.step(f"utility {number}"):
                region = scored(found).select(utility_fraction, scope=ranked, layers=within)
                region.save(out / f"utility-{number}.safetensors")
                checkpoint.unlink(missing_ok=True)
    if not run.is_done("locate"):
        with run.step("locate"):
            scores = scored(prompt_set)
            selected = (
                scores.share_of_all(DEFAULT_FRACTION if fraction is None else fraction)
                if of_all and isinstance(scores, WeightScores)
                else fraction
            )
            region = scores.select(selected, scope=ranked, layers=within)
            if utility_sets:
                useful = [Region.load(out / f"utility-{number}.safetensors") for number in range(len(utility_sets))]
                region.save(out / "located.safetensors")
                refined = refine(region, useful)
                write_json(out / "refinement.json", refined.summary())
                region = refined.region
                if refill:
                    region = scores.select(selected, scope=ranked, layers=within, outside=union_of(useful))
            pipeline.save_region(region, out)
            checkpoint.unlink(missing_ok=True)
        run.finish()
    summary = Region.load(out / "region.safetensors").summary()
    text = f"{summary['actual']:,} of {summary['eligible']:,} weights selected; written to {out / 'region.safetensors'}"
    if summary["units"]:
        text = f"{summary['units']['selected']:,} of {summary['units']['scored']:,} {summary['granularity']}s: " + text
    if utility_sets:
        summary["refinement"] = read_json(out / "refinement.json")
        text = _removed(summary["refinement"]) + text
    show(summary, (), text)


def _removed(refinement: dict[str, Any]) -> str:
    return (
        f"{refinement['removed']:,} of {refinement['located']:,} located weights are needed for utility "
        f"({refinement['share']:.1%}; {refinement['chance']:.1%} expected by chance)\n"
    )


def methods() -> None:
    """The identification methods: what they score, what they need and how faithful they are."""
    rows = [
        {"name": name, **{fact: getattr(kind, fact) for fact in ("granularity", "needs", "reference", "fidelity")}}
        for name, kind in sorted(METHODS.items())
    ]
    show(rows, [table("Methods", tuple(rows[0]), [tuple(row.values()) for row in rows], words=5)])


def sets() -> None:
    """The named prompt sets in the folder of BALLAST_DATA."""
    found = {name: str(path) for name, path in available_sets().items()}
    show(found, (), "\n".join(found) or "BALLAST_DATA names no folder with sets; the built-in ones are builtin/...")


def _scope(scope: str | None) -> Scope | UnitScope | None:
    known: dict[str, Scope | UnitScope] = {
        "global": "global",
        "per_layer": "per_layer",
        "per_tensor": "per_tensor",
        "per_row": "per_row",
        "per_kind": "per_kind",
    }
    if scope is not None and scope not in known:
        raise UsageError(f"There is no scope {scope!r}; use {', '.join(known)}.")
    return None if scope is None else known[scope]


def _layers(given: str | None) -> range | None:
    """`15-29`, or a single number."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", given)
    layers = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not layers:
        raise UsageError(f"{given!r} names no layers; write the first and the last one, such as 15-29.")
    return layers


def _settings(given: list[str]) -> dict[str, str | int | float]:
    """`name=value` pairs; a value that reads as a number, or as true or false, is one."""
    settings: dict[str, str | int | float] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"The setting {pair!r} has no value; write name=value.")
        try:
            settings[name] = int(value)
        except ValueError:
            try:
                settings[name] = float(value)
            except ValueError:
                settings[name] = {"true": True, "false": False}.get(value.lower(), value)
    return settings
