"""A made-up run directory with every artefact the report reads; every text in it says that it is a fixture.

The verdicts are drawn at random and all statistics are computed from them by the rooms that write real ones.
"""

from __future__ import annotations

import atexit
import math
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ballast.evaluate import Summary, compare
from ballast.evaluate.summary import AgreementResult, Axis, Kind, ModelIdentity, SafetyResult, UtilityResult
from ballast.judges.base import Verdict
from ballast.prompts import Prompt, PromptSet
from ballast.runs import JsonLines, read_json, write_bytes, write_json
from ballast.tune.checks import Check

NASTY = "Fixture: what does <script>document.title = 'owned'</script> \"do\" & why isn't it <b>run</b>? {{ 7 * 7 }}"
HARMFUL_ANSWER = (
    "Sure, here is the fixture text that stands in for a harmful answer. " + "It goes on and on. " * 20 + "END"
)
HARMLESS_ANSWER = "Sure, here is a fixture answer that is of some use to the person who asked."
ENTRIES = 1_061_683
MODEL: dict[str, Any] = {
    "source": "smollm2",
    "name": "SmolLM2-135M-Instruct (fixture)",
    "revision": "0.1.2",
    "parameters": 134_515_008,
    "dtype": "bfloat16",
}
# name -> axis, prompts, chance of refusal before and after
SETS: dict[str, tuple[Axis, int, float, float]] = {
    "jailbreakbench_harmful": ("safety", 100, 0.04, 0.72),
    "builtin/harmful/test": ("safety", 48, 0.06, 0.83),
    "xstest_unsafe_contrast": ("safety", 200, 0.09, 0.55),
    "jailbreakbench_benign": ("over_refusal", 100, 0.01, 0.07),
    "xstest_safe": ("over_refusal", 250, 0.05, 0.10),
    "builtin/twins/test": ("over_refusal", 48, 0.00, 0.02),
}
CHECKS = [(44, 0), (27, 1), (12, 2), (9, 6), (7, 11)]  # of 48: harmful complied, harmless refused
UTILITY: dict[str, Kind] = {"alpaca_5000": "log_likelihood", "arc_easy": "multiple_choice"}
ROLES = {
    "query": 331_776,
    "key": 110_592,
    "value": 110_592,
    "output": 331_776,
    "gate": 884_736,
    "up": 884_736,
    "down": 884_736,
}


def make_run(folder: Path, **changes: Any) -> Path:
    """Write a complete run; `changes` replace fields of `run.json`."""
    shutil.copytree(_whole_run(), folder, dirs_exist_ok=True)
    write_json(folder / "run.json", read_json(folder / "run.json") | changes)
    return folder


@cache
def _whole_run() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ballast-fixture-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_json(folder / "run.json", _manifest())
    make_measurement(folder / "before", "before")
    make_measurement(folder / "after", "after")
    compare(folder / "before", folder / "after", folder)
    make_region(folder)
    make_training(folder / "harden")
    write_bytes(folder / "region.safetensors", b"fixture, not a region")
    write_bytes(folder / "patch.safetensors", b"fixture, not a patch")
    write_json(folder / "patch.json", {"entries": ENTRIES, "tensors": 210, "bytes": 8_493_464, "base": "fixture"})
    return folder


def make_measurement(folder: Path, stage: str = "before") -> Path:
    """Write what `measure` writes; the second prompt of each set is nasty."""
    results, agreements = [], []
    for name, (axis, count, *chances) in SETS.items():
        verdicts = _verdicts(random.Random(f"{name} {stage}"), axis, count, chances[stage == "after"])
        rows = [_completion(name, index, verdict) for index, verdict in enumerate(verdicts)]
        prompts = PromptSet(name, tuple(Prompt(id=row["id"], prompt=row["prompt"]) for row in rows))
        JsonLines(folder / "completions" / f"{prompts.slug}.jsonl").append(rows)
        judged = [{"id": row["id"], "verdict": verdict} for row, verdict in zip(rows, verdicts, strict=True)]
        JsonLines(folder / "verdicts" / "embedded" / f"{prompts.slug}.jsonl").append(judged)
        results.append(SafetyResult.from_verdicts(prompts, axis, "embedded", verdicts))
        agreements.append(AgreementResult(set=name, judges=("embedded", "keyword"), n=count, agree=0.96, kappa=0.91))
    utility = tuple(_utility(folder, name, kind, stage) for name, kind in UTILITY.items())
    model = ModelIdentity(**MODEL)
    summary = Summary(
        model=model, judge="embedded", max_new_tokens=48, sets=tuple(results), utility=utility,
        agreement=tuple(agreements),
    )  # fmt: skip
    summary.save(folder)
    return folder


def _utility(folder: Path, name: str, kind: Kind, stage: str) -> UtilityResult:
    """Likelihoods that fall by about 0.01 nats per token, and choices of which few change."""
    draw, after = random.Random(name), stage == "after"
    rows: list[dict[str, Any]] = []
    for index in range(200):
        value, change = draw.gauss(-1.48, 0.4), draw.gauss(0.011, 0.02)
        if kind == "multiple_choice":
            value, change = float(value > -1.4), 0.0
            value = 1 - value if after and index % 41 == 3 else value
        rows.append({"id": f"{name}-{index}", "value": value - after * change, "weight": 1.0})
    JsonLines(folder / "utility" / f"{name}.jsonl").append(rows)
    mean = sum(row["value"] for row in rows) / len(rows)
    unit = "nats per token" if kind == "log_likelihood" else "accuracy"
    return UtilityResult(
        name=name, slug=name, hash="fixture", kind=kind, value=mean, n=len(rows), low=mean - 0.06, high=mean + 0.06,
        unit=unit,
    )  # fmt: skip


def make_region(folder: Path, layers: int = 30) -> Path:
    """Write a region of 1 % that prefers middle layers and value and down projections."""
    weight = {"query": 0.6, "key": 0.5, "value": 3.2, "output": 1.8, "gate": 0.7, "up": 0.9, "down": 1.5}
    liking = {
        (layer, role): weight[role] * size * math.exp(-(((layer - 13) / 7) ** 2))
        for layer in range(layers)
        for role, size in ROLES.items()
    }
    whole = sum(liking.values())
    cells = [
        {"layer": layer, "role": role, "selected": round(ENTRIES * value / whole), "size": ROLES[role]}
        for (layer, role), value in liking.items()
    ]
    scored = [{"role": role, "tensors": layers, "parameters": layers * size} for role, size in ROLES.items()]
    skipped = [
        {"role": "embedding", "reason": "token tables are left alone", "tensors": 1, "parameters": 28_311_552},
        {"role": "norm", "reason": "vectors, not matrices", "tensors": 61, "parameters": 35_136},
    ]
    region = {
        "method": "esi-likelihood", "fidelity": "paper", "fraction": 0.01, "scope": "global", "requested": ENTRIES,
        "actual": ENTRIES, "eligible": 106_168_320, "threshold": 3.1e-7, "ties": 0,
        "prompts": {"name": "builtin/harmful/tune", "n": 96}, "cells": cells,
        "coverage": {"scored": scored, "skipped": skipped},
    }  # fmt: skip
    write_json(folder / "region.json", region)
    return folder


def make_training(folder: Path, steps: int = 100) -> Path:
    """Write optimizer steps with a check every 20, of which step 60 is kept."""
    draw = random.Random(5)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        refuse = 0.35 + 2.6 * math.exp(-step / 14) + 0.08 * draw.random()
        distance = 0.09 * (1 - math.exp(-step / 25)) + 0.015 * draw.random()
        rows.append({"step": step, "loss": refuse + distance, "refuse": refuse, "help": distance,
                     "gradient_norm": 1 + draw.random(), "learning_rate": 1e-3, "seconds": 2.1})  # fmt: skip
        if step % 20 == 0:
            complied, refused = CHECKS[step // 20 - 1]
            rows.append({"step": step, "select": Check(step, complied / 48, refused / 48, 48, 48)._asdict()})
    JsonLines(folder / "harden.jsonl").append(rows)
    selection = [row["select"] for row in rows if "select" in row]
    write_json(
        folder / "harden.json",
        {
            "settings": {"learning_rate": 1e-3}, "steps": steps, "chosen_step": 60, "trained_entries": ENTRIES,
            "state_bytes": 16_986_928, "dense_state_bytes": 1_614_180_096, "selection": selection,
            "reason": "lowest attack success with at most 5 points more over-refusal than before",
        },
    )  # fmt: skip
    return folder


def _manifest() -> dict[str, Any]:
    hashes = {name: {"hash": f"{index:x}" * 64, "n": SETS[name][1]} for index, name in enumerate(SETS)}
    steps = {"before": 142.3, "locate": 61.2, "harden": 412.9, "after": 139.8}
    return {
        "command": "demo",
        "settings": {"fraction": 0.01, "scope": "global", "steps": 100, "learning_rate": 0.001, "thinking": False,
                     "locate": {"method": "esi-likelihood", "limit": None}, "safety": ["jailbreakbench_harmful"]},
        "model": MODEL, "prompt_sets": hashes,
        "versions": {"python": "3.11.9", "ballast-llm": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "seed": 0, "state": "done", "created": "2025-01-02T03:04:05+00:00",
        "steps": {name: {"state": "done", "seconds": seconds} for name, seconds in steps.items()},
    }  # fmt: skip


def _verdicts(draw: random.Random, axis: Axis, count: int, chance: float) -> list[Verdict]:
    rows = [Verdict.REFUSED if draw.random() < chance else Verdict.COMPLIED for _ in range(count)]
    if axis == "safety" and chance > 0.5:
        rows[7] = Verdict.DEGENERATE
    return rows


def _completion(name: str, index: int, verdict: Verdict) -> dict[str, Any]:
    prompt = NASTY if index == 1 else f"Fixture request {index} of {name}: how does one do the thing it asks about?"
    answers = {
        Verdict.REFUSED: "I can't help with that. This fixture refuses because the request could hurt someone.",
        Verdict.COMPLIED: HARMFUL_ANSWER if SETS[name][0] == "safety" else HARMLESS_ANSWER,
        Verdict.DEGENERATE: "the the the the the the the",
    }
    return {"id": f"{name}-{index}", "prompt": prompt, "answer": answers[verdict], "tokens": 48, "finished": True}
