"""Safety Enhancement Tuning (SET, arXiv 2604.08297): teach refusal by tuning only the weights of a region."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch.distributed as dist

from ballast.errors import NumericalError, PromptError, UsageError
from ballast.judges import get_judge
from ballast.locate.engine import only_trainable
from ballast.models import LanguageModel
from ballast.models.exchange import exchanged
from ballast.models.memory import must_fit
from ballast.models.sharding import is_sharded
from ballast.patches import Origin, Patch
from ballast.progress import track
from ballast.prompts import PromptSet, PromptSets, as_prompt_set, as_prompt_sets
from ballast.prompts.overlap import require_disjoint
from ballast.regions import Region
from ballast.runs import JsonLines, RunDirectory, write_json
from ballast.tune.checks import Check, check, choose, reaches, reason, require_scored
from ballast.tune.curriculum import Curriculum, curriculum
from ballast.tune.explosion import highest_loss, require_calm, require_sound
from ballast.tune.micro_batch import in_fitting_batches
from ballast.tune.progress_file import Progress
from ballast.tune.reference_code import norms_and_biases
from ballast.tune.settings import HardenSettings
from ballast.tune.sparse_adamw import SparseAdamW
from ballast.tune.step import train_step

REFUSALS = "builtin/refusals"
HARMLESS = ("builtin/twins/tune", "builtin/borderline/tune", "builtin/ordinary/tune")
SELECT_HARMFUL = "builtin/harmful/select"
SELECT_HARMLESS = ("builtin/twins/select", "builtin/borderline/select")
STATE, PATCH = "state.safetensors", "patch.safetensors"
NO_ROOM = (
    "What the original model answers does not fit into memory; leave out the longest prompts, allow fewer "
    "answer_tokens or use a larger machine."
)
Select = tuple[PromptSet, Sequence[PromptSet]]  # harmful, harmless


def harden(
    lm: LanguageModel,
    region: Region,
    *,
    refusals: PromptSets = REFUSALS,
    harmless: PromptSets = HARMLESS,
    select_harmful: PromptSet | str = SELECT_HARMFUL,
    select_harmless: PromptSets = SELECT_HARMLESS,
    settings: HardenSettings | None = None,
    out: Path | str | None = None,
) -> Patch:
    """Tune the weights of a region so that the model refuses harmful requests and answers harmless ones as before.

    Minimises the cross-entropy of refusals plus the divergence from the original model on harmless prompts. Keeps the
    step with the lowest attack success on the select prompts whose over-refusal stays within the budget, or the one
    with the smallest rise if none does; `harden.json` says which. With a target it stops at the first that is there.

    Args:
        lm: The model the region was located on. Its weights are the original ones again when the call returns.
        region: The weights to tune.
        refusals: Harmful prompts with refusals as responses; a prompt without one gets a general refusal.
        harmless: Harmless prompts; the model's own answers to them are what it stays close to. Near twins of the
            harmful ones matter most.
        select_harmful: Harmful prompts on which the step is chosen; none of them may be in the training sets.
        select_harmless: Harmless prompts for the same, counted together.
        settings: See `HardenSettings`.
        out: Folder for `harden.jsonl` (one row per step), `harden.json`, `patch.safetensors` and the state; the same
            call on the same folder continues. Where memory runs out, `run.json` says under `micro_batch` how many rows
            per pass fitted. A temporary folder if None. Of several processes the first writes it, and
            an interrupted run cannot be continued.

    Returns:
        The change as a patch: apply it with `patch.apply(lm.model)`.

    Raises:
        RegionError: The region belongs to another model.
        PromptError: A set is malformed, or training and select prompts overlap.
        NumericalError: The loss is not finite or exploded, and the last good state is kept; or no step lowered attack
            success.
        UsageError: The untuned model is within the target already, no answer of it got a verdict, or one row does not
            fit into memory.
        RunError: The folder holds another run or cannot be written.
    """
    folder, chosen = _folder(lm, out), settings or HardenSettings()
    refusal_sets, harmless_sets = as_prompt_sets(refusals), as_prompt_sets(harmless)
    select = (as_prompt_set(select_harmful), as_prompt_sets(select_harmless))
    _check_disjoint([*refusal_sets, *harmless_sets], [select[0], *select[1]])
    region.check_model(lm.fingerprints(), {name: value.shape for name, value in lm.model.named_parameters()})
    run = RunDirectory.open(
        folder,
        "harden",
        chosen.recorded(),
        {
            "model": lm.identity(),
            "region": region.region_id,
            "prompt_sets": {
                group.name: group.identity() for group in (*refusal_sets, *harmless_sets, select[0], *select[1])
            },
        },
    )
    if not run.is_done("train"):
        with run.step("train"):
            with must_fit(NO_ROOM):
                lessons = curriculum(lm, refusal_sets, harmless_sets, chosen, run.path / "own_answers")
            _tune_in_memory(lm, region, lessons, select, chosen, run)
    (run.path / STATE).unlink(missing_ok=True)
    run.finish()
    return Patch.load(run.path / PATCH)


def _folder(lm: LanguageModel, out: Path | str | None) -> Path:
    """Where this process writes: one of several processes to `out`, the others to temporary folders."""
    if out is None or (is_sharded(lm) and dist.get_rank()):
        return Path(tempfile.mkdtemp(prefix="ballast-"))
    if is_sharded(lm) and RunDirectory.state_of(Path(out)) is not None:
        raise UsageError(f"{out} holds a run, and one on a sharded model cannot be continued; give a new folder.")
    return Path(out)


def _tune_in_memory(
    lm: LanguageModel, region: Region, lessons: Curriculum, select: Select, settings: HardenSettings, run: RunDirectory
) -> None:
    """Tune, with fewer rows per pass from the last check on if memory runs out."""

    def tune(rows: int) -> None:
        _tune(lm, region, lessons, select, dataclasses.replace(settings, micro_batch=rows), run)

    if not is_sharded(lm):
        instead = "leave out the longest prompts, use a smaller region or a larger machine"
        in_fitting_batches(run, settings.micro_batch, settings.micro_batch, tune, instead)
        return
    rows = settings.micro_batch  # the other processes wait inside the step, so it cannot be done again with fewer
    with must_fit(f"Memory ran out with {rows} rows per pass; use a smaller micro_batch or more processes."):
        tune(rows)


def _tune(
    lm: LanguageModel, region: Region, lessons: Curriculum, select: Select, settings: HardenSettings, run: RunDirectory
) -> None:
    """Train, and write the patch and the record; the weights are the original ones again at the end."""
    parameters = dict(lm.model.named_parameters())
    beside = norms_and_biases(lm) if settings.variant == "reference_code" else {}
    indices, norms = {**region.indices, **beside}, sum(map(len, beside.values()))
    with (
        only_trainable(lm.model, set(indices)),
        exchanged(lm) if is_sharded(lm) else nullcontext() as exchange,
        SparseAdamW(
            parameters,
            indices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            exchange=exchange,
        ) as optimizer,
    ):
        original = optimizer.current()
        try:
            progress, seconds = _train(lm, optimizer, lessons, select, settings, run)
        finally:
            optimizer.write(original)
    best = _best(progress.checks, settings)
    kept, previous = optimizer.joined(progress.kept), optimizer.joined(original)
    patch = Patch.from_values(
        {name: (indices[name], kept[name], previous[name]) for name in previous},
        lm.model,
        base=Origin(source=lm.source, name=lm.name, revision=lm.revision),
        settings={
            "verb": "harden",
            "region": region.region_id,
            "step": best.step,
            "trained_norms_and_biases": norms,
            **dataclasses.asdict(settings),
        },
    )
    patch.save(run.path / PATCH)
    untuned, target, budget = progress.checks[0], settings.target_asr, settings.max_over_refusal_rise
    write_json(
        run.path / "harden.json",
        {
            "settings": dataclasses.asdict(settings),
            "steps": progress.step,
            "chosen_step": best.step,
            "target_reached": None if target is None else reaches(best, untuned, target, budget),
            "over_refusal_rise": best.over_refusal - untuned.over_refusal,
            "seconds": seconds,
            "refusals_learnt": len(lessons.refuse),
            "refusals_left_out": lessons.left_out,
            "trained_entries": optimizer.entries,
            "trained_norms_and_biases": norms,
            "state_bytes": optimizer.state_bytes,
            "dense_state_bytes": lm.model.num_parameters() * (3 * lm.model.dtype.itemsize),
            "selection": [row._asdict() for row in progress.checks],
            "reason": reason(best, progress.checks, budget, target),
        },
    )


def _best(checks: Sequence[Check], settings: HardenSettings) -> Check:
    """The check to keep.

    Raises:
        UsageError: The untuned model is at the target.
        NumericalError: No step lowered attack success.
    """
    best = choose(checks, settings.max_over_refusal_rise)
    if best.step == 0 and _stops(checks, settings):
        raise UsageError(
            f"The untuned model complies with {best.attack_success_rate:.0%} of the harmful select prompts, which is "
            f"within the target of {settings.target_asr:.0%}; ask for less, or leave it as it is."
        )
    if best.step == 0:
        raise NumericalError(
            "No step lowered attack success on the select prompts; allow more steps or a higher learning rate."
        )
    return best


def _stops(checks: Sequence[Check], settings: HardenSettings) -> bool:
    return reaches(checks[-1], checks[0], settings.target_asr, settings.max_over_refusal_rise)


def _train(
    lm: LanguageModel,
    optimizer: SparseAdamW,
    lessons: Curriculum,
    select: Select,
    settings: HardenSettings,
    run: RunDirectory,
) -> tuple[Progress, float]:
    """Steps up to the target or to the last, continuing behind the last check of an interrupted run; and their time.

    Returns:
        Where hardening stands, and the seconds of all steps and checks.
    """
    judge = get_judge(settings.judge)
    progress = Progress.open(run.path / STATE, optimizer)
    log = JsonLines(run.path / "harden.jsonl")
    log.keep(lambda row: bool(progress.checks) and row["step"] <= progress.step)

    def checked(step: int) -> None:
        start = time.monotonic()
        found = check(lm, judge, *select, step=step, max_new_tokens=settings.check_tokens)
        _note(progress, found, optimizer, settings)
        log.append([{"step": step, "select": found._asdict(), "seconds": round(time.monotonic() - start, 3)}])
        progress.save(optimizer)

    if not progress.checks:
        checked(0)
    require_scored(progress.checks[0])
    for step in track(range(progress.step, settings.steps), "Hardening", progress.step):
        if _stops(progress.checks, settings):
            break
        start = time.monotonic()
        with _state_named(run.path, progress):
            row = train_step(lm, optimizer, lessons, settings, step)
            log.append([{"step": step + 1, **row, "seconds": round(time.monotonic() - start, 3)}])
            highest = highest_loss(lm, next(row["refuse"] for row in log.rows if "refuse" in row))
            require_calm(row["refuse"], highest, step + 1)
        if (step + 1) % settings.check_every == 0 or step + 1 == settings.steps:
            with _state_named(run.path, progress):
                require_sound(lm, lessons, settings, step + 1, highest)
            checked(step + 1)
    return progress, round(sum(row.get("seconds", 0.0) for row in log.rows), 3)


@contextmanager
def _state_named(folder: Path, progress: Progress) -> Iterator[None]:
    """Add to a numerical error what is kept and how to go on."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(
            f"{str(error).removesuffix('.')}, which is a different run and needs another --out folder; the state of "
            f"step {progress.step} is kept in {folder}, and the same command continues from it."
        ) from error


def _note(progress: Progress, found: Check, optimizer: SparseAdamW, settings: HardenSettings) -> None:
    """Add a check; keep the weights if it is the best so far."""
    progress.checks.append(found)
    if choose(progress.checks, settings.max_over_refusal_rise) is found:
        progress.kept = optimizer.current()
    progress.step = found.step


def _check_disjoint(training: Sequence[PromptSet], select: Sequence[PromptSet]) -> None:
    slugs = [prompts.slug for prompts in (*training, *select)]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise PromptError(f"Two of the prompt sets are called {slug}; give each a name of its own.")
    require_disjoint(training, select)
