"""A made-up run directory with every artefact the report reads; every text in it says that it is a fixture.

The verdicts are drawn at random and all statistics are computed from them, so that the page is consistent in itself.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from ballast.runs import JsonLines, write_bytes, write_json

NASTY = "Fixture: what does <script>document.title = 'owned'</script> \"do\" & why isn't it <b>run</b>? {{ 7 * 7 }}"
HARMFUL_ANSWER = (
    "Sure, here is the fixture text that stands in for a harmful answer. " + "It goes on and on. " * 20 + "END"
)
HARMLESS_ANSWER = "Sure, here is a fixture answer that is of some use to the person who asked."
ENTRIES = 1_061_683
MODEL = {
    "source": "smollm2",
    "name": "SmolLM2-135M-Instruct (fixture)",
    "revision": "0.1.2",
    "parameters": 134_515_008,
    "dtype": "bfloat16",
}
# name -> axis, prompts, chance of refusal before and after
SETS = {
    "jailbreakbench_harmful": ("safety", 100, 0.04, 0.72),
    "builtin/harmful/test": ("safety", 48, 0.06, 0.83),
    "xstest_unsafe_contrast": ("safety", 200, 0.09, 0.55),
    "jailbreakbench_benign": ("over_refusal", 100, 0.01, 0.07),
    "xstest_safe": ("over_refusal", 250, 0.05, 0.10),
    "builtin/twins/test": ("over_refusal", 48, 0.00, 0.02),
}
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
    draw = random.Random(7)
    verdicts = {stage: {name: _verdicts(draw, name, stage) for name in SETS} for stage in ("before", "after")}
    write_json(folder / "run.json", _manifest() | changes)
    for stage, by_set in verdicts.items():
        make_measurement(folder / stage, by_set)
    write_json(folder / "comparison.json", _comparison(verdicts["before"], verdicts["after"]))
    make_region(folder)
    make_training(folder)
    write_bytes(folder / "region.safetensors", b"fixture, not a region")
    write_bytes(folder / "patch.safetensors", b"fixture, not a patch")
    write_json(folder / "patch.json", {"entries": ENTRIES, "tensors": 210, "bytes": 8_493_464, "base": "fixture"})
    return folder


def make_measurement(folder: Path, by_set: dict[str, list[str]] | None = None) -> Path:
    """Write what `measure` writes: a summary, and completions in which the second prompt of each set is nasty."""
    draw = random.Random(3)
    by_set = by_set or {name: _verdicts(draw, name, "before") for name in SETS}
    for name, verdicts in by_set.items():
        rows = [_completion(name, index, verdict) for index, verdict in enumerate(verdicts)]
        JsonLines(folder / "completions" / f"{name}.jsonl").append(rows)
    utility = [
        {"name": "alpaca_5000", "kind": "log_likelihood", "value": -1.4812, "n": 500, "low": -1.5203, "high": -1.4421,
         "unit": "nats per token"},
        {"name": "arc_easy", "kind": "multiple_choice", "value": 0.412, "n": 500, "low": 0.3697, "high": 0.4557,
         "unit": "accuracy"},
    ]  # fmt: skip
    agreement = [
        {"set": name, "judges": ["embedded", "keyword"], "n": len(verdicts), "agree": 0.96, "kappa": 0.91}
        for name, verdicts in by_set.items()
    ]
    sets = [_set_summary(name, verdicts) for name, verdicts in by_set.items()]
    summary = {"model": MODEL, "judge": "embedded", "max_new_tokens": 48, "sets": sets}
    write_json(folder / "summary.json", summary | {"utility": utility, "agreement": agreement})
    return folder


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
    """Write 100 optimizer steps with a check every 20, of which step 60 is kept."""
    draw = random.Random(5)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        refuse = 0.35 + 2.6 * math.exp(-step / 14) + 0.08 * draw.random()
        distance = 0.09 * (1 - math.exp(-step / 25)) + 0.015 * draw.random()
        rows.append({"step": step, "loss": refuse + distance, "refuse": refuse, "help": distance,
                     "gradient_norm": 1 + draw.random(), "learning_rate": 1e-3, "seconds": 2.1})  # fmt: skip
        if step % 20 == 0:
            check = {"n_harmful": 48, "n_benign": 48}
            check |= {"attack_success_rate": [44, 27, 12, 9, 7][step // 20 - 1] / 48}
            check |= {"over_refusal": [0, 1, 2, 6, 11][step // 20 - 1] / 48}
            rows.append({"step": step, "select": check})
    JsonLines(folder / "harden.jsonl").append(rows)
    chosen = [row for row in rows if "select" in row]
    selection = [{"step": row["step"], **row["select"]} for row in chosen]
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


def _verdicts(draw: random.Random, name: str, stage: str) -> list[str]:
    axis, count, before, after = SETS[name]
    chance = before if stage == "before" else after
    rows = ["refused" if draw.random() < chance else "complied" for _ in range(count)]
    if stage == "after" and axis == "safety":
        rows[7] = "degenerate"
    return rows


def _completion(name: str, index: int, verdict: str) -> dict[str, Any]:
    prompt = NASTY if index == 1 else f"Fixture request {index} of {name}: how does one do the thing it asks about?"
    answers = {
        "refused": "I can't help with that. This fixture refuses because the request could hurt someone.",
        "complied": HARMFUL_ANSWER if SETS[name][0] == "safety" else HARMLESS_ANSWER,
        "degenerate": "the the the the the the the",
    }
    return {"id": f"{name}-{index}", "prompt": prompt, "answer": answers[verdict], "tokens": 48, "finished": True}


def _rate(count: int, of: int) -> dict[str, float]:
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return {"rate": count / of, "low": float(interval.low), "high": float(interval.high)}


def _wanted(name: str) -> str:
    return "complied" if SETS[name][0] == "safety" else "refused"


def _set_summary(name: str, verdicts: list[str]) -> dict[str, Any]:
    counts = {verdict: verdicts.count(verdict) for verdict in ("refused", "complied", "degenerate", "unscored")}
    row = {"name": name, "axis": SETS[name][0], "judge": "embedded", "n": len(verdicts), "scored": len(verdicts)}
    return row | counts | _rate(counts[_wanted(name)], len(verdicts))


def _comparison(before: dict[str, list[str]], after: dict[str, list[str]]) -> dict[str, Any]:
    sets, flips = [], []
    for name, first in before.items():
        axis, second = SETS[name][0], after[name]
        pairs = list(zip(first, second, strict=True))
        changed = [(index, a, b) for index, (a, b) in enumerate(pairs) if a != b]
        flips += [{"set": name, "axis": axis, "id": f"{name}-{i}", "before": a, "after": b} for i, a, b in changed]
        refused = sum(b == "refused" for _, _, b in changed)
        complied = sum(b == "complied" for _, _, b in changed)
        wanted, n = _wanted(name), len(pairs)
        gained = sum(b == wanted for _, _, b in changed)
        lost = sum(a == wanted for _, a, _ in changed)
        difference = (gained - lost) / n
        error = 1.96 * math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 1)) / n
        sets.append(
            {
                "name": name, "axis": axis, "n": n, "before": _rate(first.count(wanted), n),
                "after": _rate(second.count(wanted), n), "difference": difference, "low": difference - error,
                "high": difference + error, "to_refused": refused, "to_complied": complied,
                "other": len(changed) - refused - complied,
                "mcnemar_p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
                "smallest_detectable_change": 2.8 * math.sqrt(max(gained + lost, 1)) / n,
            }
        )  # fmt: skip
    utility = [
        {"name": "alpaca_5000", "kind": "log_likelihood", "unit": "nats per token", "n": 500, "before": -1.4812,
         "after": -1.4924, "difference": -0.0112, "low": -0.0131, "high": -0.0093, "relative_change": -0.00756},
        {"name": "arc_easy", "kind": "multiple_choice", "unit": "accuracy", "n": 500, "before": 0.412, "after": 0.408,
         "difference": -0.004, "low": -0.016, "high": 0.008, "relative_change": -0.0097},
    ]  # fmt: skip
    return {"before": "before", "after": "after", "sets": sets, "utility": utility, "flips": flips}
