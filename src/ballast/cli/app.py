"""The commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import transformers
import typer

from ballast import pipeline
from ballast.cli.output import comparison_tables, percent, show, state, summary_tables, table
from ballast.cli.patch import patch_app
from ballast.errors import UsageError
from ballast.evaluate import compare as compare_folders
from ballast.evaluate import measure as measure_model
from ballast.evaluate.measure import DEFAULT_JUDGES
from ballast.locate import METHODS, get_method
from ballast.locate import locate as locate_scores
from ballast.models import LanguageModel, open_model
from ballast.patches import Patch
from ballast.prompts import available_sets, load_prompts
from ballast.regions import Region, exact_fraction
from ballast.regions import overlap as overlap_regions
from ballast.regions.selection import Scope
from ballast.report import write_report
from ballast.runs import RunDirectory
from ballast.tune import HardenSettings
from ballast.tune import harden as harden_model
from ballast.tune.harden import HARMLESS, REFUSALS, SELECT_HARMFUL, SELECT_HARMLESS

app = typer.Typer(
    help="Find the weights that keep a language model safe; tune, patch and measure the model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(patch_app, name="patch")

Model = Annotated[str, typer.Argument(help="smollm2, a checkpoint folder, or a hub id.", metavar="MODEL")]
Out = Annotated[Path, typer.Option(help="Folder for the results; the same command continues there.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Limit = Annotated[int | None, typer.Option(help="At most this many prompts of each set, drawn with the seed.", min=1)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
PatchFile = Annotated[Path | None, typer.Option("--patch", help="Patch to apply in memory first.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Accept pickled weights, which can run code.")]


@app.callback()
def _options(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON value for machines.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    state.json, state.debug = json, debug
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@app.command()
def measure(
    model: Model,
    out: Out,
    safety: Annotated[list[str] | None, typer.Option(help="Harmful prompts; repeat for more sets.")] = None,
    overrefusal: Annotated[list[str] | None, typer.Option(help="Harmless prompts; repeat for more sets.")] = None,
    utility: Annotated[list[str] | None, typer.Option(help="Sets with responses or choices; repeat.")] = None,
    judge: Annotated[list[str] | None, typer.Option(help="Judges; the first one gives the verdicts.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens after which an answer is cut.", min=1)] = 48,
    patch: PatchFile = None,
    limit: Limit = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    allow_pickle: Pickle = False,
) -> None:
    """Attack success, over-refusal and utility; without any set, the built-in test sets."""
    lm = _opened(model, dtype, revision, trust_remote_code, allow_pickle, patch)
    named = safety or overrefusal or utility
    sets = {
        "safety": safety or (() if named else pipeline.SAFETY),
        "overrefusal": overrefusal or (() if named else pipeline.OVER_REFUSAL),
        "utility": utility or (() if named else pipeline.UTILITY),
    }
    loaded = {axis: [load_prompts(spec, limit=limit, seed=seed) for spec in specs] for axis, specs in sets.items()}
    summary = measure_model(lm, judges=judge or DEFAULT_JUDGES, max_new_tokens=max_new_tokens, out=out, **loaded)
    show(summary.model_dump(mode="json"), summary_tables(summary), f"Written to {out}")


@app.command()
def locate(
    model: Model,
    out: Out,
    prompts: Annotated[str, typer.Option(help="Harmful prompts.")] = pipeline.LOCATING,
    method: Annotated[str, typer.Option(help="See `ballast methods`.")] = "esi",
    setting: Annotated[list[str] | None, typer.Option(help="A setting of the method, name=value; repeat.")] = None,
    fraction: Annotated[float, typer.Option(help="Share of the eligible weights, in (0, 1].")] = 0.01,
    scope: Annotated[str, typer.Option(help="global, per_layer, per_tensor or per_row.")] = "global",
    limit: Limit = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Rows per backward pass.", min=1)] = 8,
    checkpoint_seconds: Annotated[float, typer.Option(help="Least seconds between two saves of the state.")] = 60.0,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    allow_pickle: Pickle = False,
) -> None:
    """Find the weights that matter most for safety; writes region.safetensors."""
    chosen = get_method(method, **_settings(setting or []))
    exact_fraction(fraction)
    ranked = _scope(scope)
    lm = _opened(model, dtype, revision, trust_remote_code, allow_pickle, None)
    prompt_set = load_prompts(prompts, limit=limit, seed=seed)
    settings = {"method": method, **dataclasses.asdict(chosen), "fraction": fraction, "scope": scope, "seed": seed}
    run = RunDirectory.open(
        out,
        "locate",
        {**settings, "batch_size": batch_size},
        {"model": lm.identity(), "prompts": prompt_set.identity()},
    )
    if not run.is_done("locate"):
        with run.step("locate"):
            checkpoint = out / "gradients.safetensors"
            scores = locate_scores(
                lm,
                prompt_set,
                chosen,
                seed=seed,
                batch_size=batch_size,
                checkpoint=checkpoint,
                checkpoint_seconds=checkpoint_seconds,
            )
            pipeline.save_region(scores.select(fraction, scope=ranked), out)
            checkpoint.unlink(missing_ok=True)
        run.finish()
    summary = Region.load(out / "region.safetensors").summary()
    text = f"{summary['actual']:,} of {summary['eligible']:,} weights selected; written to {out / 'region.safetensors'}"
    show(summary, (), text)


@app.command()
def methods() -> None:
    """The identification methods: what they need and how faithful they are."""
    rows = [
        {"name": name, "needs": kind.needs, "reference": kind.reference, "fidelity": kind.fidelity}
        for name, kind in sorted(METHODS.items())
    ]
    cells = [(row["name"], row["needs"], row["reference"], row["fidelity"]) for row in rows]
    show(rows, [table("Methods", ("name", "needs", "reference", "fidelity"), cells)])


@app.command()
def sets() -> None:
    """The named prompt sets in the folder of BALLAST_DATA."""
    found = {name: str(path) for name, path in available_sets().items()}
    show(found, (), "\n".join(found) or "BALLAST_DATA names no folder with sets; the built-in ones are builtin/...")


@app.command()
def overlap(regions: Annotated[list[Path], typer.Argument(help="Two or more region files.")]) -> None:
    """Intersection over union of regions, beside its chance level."""
    rows = overlap_regions([Region.load(path) for path in regions])
    cells = [
        (
            f"{regions[row.first]} and {regions[row.second]}",
            percent(row.iou),
            percent(row.chance),
            percent(row.size_cap),
            f"{row.intersection:,}",
        )
        for row in rows
    ]
    show([row._asdict() for row in rows], [table("Overlap", ("regions", "IoU", "chance", "cap", "shared"), cells)])


@app.command()
def harden(
    model: Model,
    region: Annotated[Path, typer.Argument(help="Region file, located on this model.")],
    out: Out,
    refusals: Annotated[str, typer.Option(help="Harmful prompts with refusals.")] = REFUSALS,
    harmless: Annotated[list[str] | None, typer.Option(help="Harmless prompts; repeat for more sets.")] = None,
    select_harmful: Annotated[str, typer.Option(help="Harmful prompts on which the step is chosen.")] = SELECT_HARMFUL,
    select_harmless: Annotated[list[str] | None, typer.Option(help="Harmless prompts for the same; repeat.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = HardenSettings.steps,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of AdamW.")] = HardenSettings.learning_rate,
    help_weight: Annotated[float, typer.Option(help="Weight of staying close.")] = HardenSettings.help_weight,
    max_over_refusal_rise: Annotated[
        float, typer.Option(help="Budget on the harmless select prompts, as a share.")
    ] = HardenSettings.max_over_refusal_rise,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    allow_pickle: Pickle = False,
) -> None:
    """Teach refusal by tuning only the weights of a region; writes patch.safetensors."""
    settings = HardenSettings(
        steps=steps,
        learning_rate=learning_rate,
        help_weight=help_weight,
        max_over_refusal_rise=max_over_refusal_rise,
        seed=seed,
    )
    lm = _opened(model, dtype, revision, trust_remote_code, allow_pickle, None)
    patch = harden_model(
        lm,
        Region.load(region),
        refusals=refusals,
        harmless=harmless or HARMLESS,
        select_harmful=select_harmful,
        select_harmless=select_harmless or SELECT_HARMLESS,
        settings=settings,
        out=out,
    )
    pipeline.save_patch(patch, out)
    info = dataclasses.asdict(patch.info())
    show(
        info | {"base": patch.header.base.model_dump()},
        (),
        f"{info['entries']:,} weights tuned; written to {out / 'patch.safetensors'}",
    )


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Folder of a measurement.")],
    after: Annotated[Path, typer.Argument(help="Folder of another, on the same prompts.")],
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json.")] = None,
) -> None:
    """Compare two measurements prompt by prompt."""
    comparison = compare_folders(before, after, out)
    show(comparison.model_dump(mode="json"), comparison_tables(comparison))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Write report.html, one page about a run."""
    page = write_report(run)
    show({"report": str(page)}, (), f"Report: {page}")


@app.command()
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


def _opened(
    model: str, dtype: str, revision: str | None, trust_remote_code: bool, allow_pickle: bool, patch: Path | None
) -> LanguageModel:
    lm = open_model(
        model, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    if patch:
        Patch.load(patch).apply(lm.model)
    return lm


def _scope(scope: str) -> Scope:
    known: dict[str, Scope] = {
        "global": "global",
        "per_layer": "per_layer",
        "per_tensor": "per_tensor",
        "per_row": "per_row",
    }
    if scope not in known:
        raise UsageError(f"There is no scope {scope!r}; use {', '.join(known)}.")
    return known[scope]


def _settings(given: list[str]) -> dict[str, str | int | float]:
    """`name=value` pairs; a value that reads as a number is one."""
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
                settings[name] = value
    return settings
