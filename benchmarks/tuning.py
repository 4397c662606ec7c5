"""What fine-tuning on a task does to the safety of a hardened model: arms of a study, side by side.

SmolLM2 is hardened as `ballast demo` does it, on built-in prompts only; then every arm fine-tunes that model on the
same rows in the same order and is measured on sets that nothing was tuned on. The hardened model is what all arms are
compared with, prompt by prompt. Needs BALLAST_DATA. Run `python benchmarks/tuning.py studies/tuning.toml`, with
`--tasks` and `--arms` for some of them; it writes `results/tuning/TASK-ARM-SEED.json`, leaves alone what is there and
continues what was interrupted. Checkpoints are thrown away.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

from results import FOLDER, write_result
from rich.console import Console

from ballast import (
    Comparison,
    FinetuneSettings,
    LanguageModel,
    Patch,
    PromptSet,
    Region,
    compare,
    demo,
    finetune,
    load_prompts,
    locate,
    measure,
    open_model,
)
from ballast.evaluate.comparison import PairedRate
from ballast.evaluate.statistics import paired_difference_interval
from ballast.pipeline import HARDENING_METHOD, LOCATING, LOCATING_LIMIT
from ballast.progress import shown_on
from ballast.prompts.overlap import without_near_duplicates
from ballast.regions import carried
from ballast.runs import JsonLines
from ballast.tune import Anchor, LoraSettings, merge_projected

RUNS = Path("runs/tuning")
HELD_OUT, HELD_OUT_SEED = 200, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--arms", nargs="+")
    arguments = parser.parse_args()
    study = tomllib.loads(arguments.study.read_text())
    with shown_on(Console(stderr=True)):
        demo(RUNS / "hardened")
        for task in arguments.tasks or study["tasks"]:
            for arm in arguments.arms or study["arms"]:
                for seed in study["seeds"]:
                    if not (FOLDER / "tuning" / f"{task}-{arm}-{seed}.json").exists():
                        run_arm(study, task, arm, seed)


def run_arm(study: dict[str, Any], task: str, arm: str, seed: int) -> None:
    """Fine-tune, measure and compare one arm; write its result."""
    lm = hardened()
    training, held_out = task_rows(study, task)
    chosen = study["arms"][arm]
    settings = FinetuneSettings(**study["finetune"] | chosen.get("finetune", {}), seed=seed)
    lora = LoraSettings(**chosen["lora"]) if "lora" in chosen else None
    measured = partial(
        measure,
        safety=study["measured"]["safety"],
        overrefusal=study["measured"]["over_refusal"],
        utility=[*study["measured"]["utility"], str(held_out)],
        max_new_tokens=study["measured"]["max_new_tokens"],
    )
    before, folder = RUNS / task / "before", RUNS / task / f"{arm}-{seed}"
    measured(lm, out=before)
    region = chosen_region(lm, chosen.get("region"), chosen.get("fraction"), seed)
    anchor = None
    if "anchor_weight" in chosen:
        assert region is not None
        anchor, region = Anchor.of_region(region, chosen["anchor_weight"]), None
    start = time.monotonic()
    checkpoint = finetune(
        lm, training, protect=region, anchor=anchor, lora=lora, out=folder / "finetune", settings=settings
    )
    seconds = time.monotonic() - start
    tuned = open_model(checkpoint)
    if "safe_lora" in chosen:
        tuned = hardened()
        merge_projected(tuned, folder / "finetune" / "adapter", "smollm2", threshold=chosen["safe_lora"])
    measured(tuned, out=folder / "after")
    changed = compare(before, folder / "after", out=folder)
    write_result(
        f"tuning/{task}-{arm}-{seed}",
        settings={**study, "tasks": study["tasks"][task], "arms": chosen, "seed": seed, "training_rows": len(training)},
        results={
            "protected": len(region) if region else 0,
            "seconds_of_last_call": round(seconds, 1),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "pooled": {axis: pooled(changed, axis) for axis in ("safety", "over_refusal")},
            "sets": [row.model_dump() for row in changed.sets],
            "utility": [row.model_dump() for row in changed.utility],
        },
    )
    shutil.rmtree(folder / "finetune")


def hardened() -> LanguageModel:
    """The model all arms begin with."""
    lm = open_model("smollm2")
    Patch.load(RUNS / "hardened" / "patch.safetensors").apply(lm.model)
    return lm


def task_rows(study: dict[str, Any], task: str) -> tuple[PromptSet, Path]:
    """Rows to train on, and a file of others that tell whether the task was learnt."""
    rows = load_prompts(study["tasks"][task])
    held_out = rows.sample(HELD_OUT, HELD_OUT_SEED)
    path = RUNS / task / "held_out.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        JsonLines(path).append([row.model_dump(include={"id", "prompt", "response"}) for row in held_out])
    names = [*study["measured"]["safety"], *study["measured"]["over_refusal"], *study["measured"]["utility"]]
    return without_near_duplicates(rows, [held_out, *(load_prompts(name) for name in names)]), path


def chosen_region(lm: LanguageModel, kind: str | None, fraction: float | None, seed: int) -> Region | None:
    """The region of an arm, on the hardened model."""
    if kind is None:
        return None
    if kind == "hardened":
        return carried(Region.load(RUNS / "hardened" / "region.safetensors"), lm)
    prompts = load_prompts(LOCATING, limit=LOCATING_LIMIT, seed=seed)
    if kind == "layers":
        return locate(lm, prompts, "safety_layers", seed=seed).select(None)
    scores = locate(lm, prompts, HARDENING_METHOD, seed=seed)
    region = scores.select(fraction, direction="bottom" if kind == "bottom" else "top")
    return region.sample_like(seed) if kind == "random" else region


def pooled(changed: Comparison, axis: str) -> dict[str, Any]:
    """The change over all sets of one axis together."""
    rows = [row for row in changed.sets if row.axis == axis]
    n, fell, rose = (sum(getattr(row, name) for row in rows) for name in ("n", "fell", "rose"))
    interval = paired_difference_interval(fell, rose, n)
    assert interval is not None
    before, after = (sum(counted(getattr(row, when), axis) for row in rows) for when in ("before", "after"))
    return {
        "n": n,
        "before": before / n,
        "after": after / n,
        "difference": (rose - fell) / n,
        "low": interval.low,
        "high": interval.high,
        "fell": fell,
        "rose": rose,
    }


def counted(rate: PairedRate, axis: str) -> int:
    return rate.complied if axis == "safety" else rate.refused


if __name__ == "__main__":
    main()
