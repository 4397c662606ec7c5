"""Attack success against over-refusal while a model is hardened: the whole curve, for several ways of choosing weights.

Every arm tunes weights of the upper half of the layers on the same rows, and is measured at several steps on sets that
share nothing with them. An arm is written `CHOICE-FRACTION` with `CHOICE` one of

    esi, random, bottom        by ESI, random with as many weights per tensor, or with the smallest scores above zero
    lora, shira                adapters of PEFT on all of these projections, with the rank that trains a number of
                               weights nearest to that of a region; SHiRA's weights are drawn by PEFT

or it is `full`, all weights of the projections in these layers, or `lora`, rank 8. A factor for staying close follows
as `-helpNUMBER`. Run `BALLAST_DATA=... python benchmarks/harden_curve.py esi-0.01 lora`; it writes
`results/harden/<arm>.json` and leaves arms alone that have one. `peak_bytes` is the highest resident memory of any
step; compare arms by it that were run one by one, as what an earlier arm left in the process counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from results import FOLDER, write_result
from stand_ins import DenseAdamW, adapter, nearest_rank
from streaming import peak_anew, status
from training_sets import training_sets

from ballast import HardenSettings, LanguageModel, PromptSet, load_prompts, locate, open_model
from ballast.evaluate.answers import generate
from ballast.evaluate.statistics import wilson
from ballast.evaluate.utility import log_likelihood
from ballast.judges import Verdict, get_judge
from ballast.locate import Scores
from ballast.locate.engine import only_trainable
from ballast.pipeline import HARDENING_METHOD, LOCATING, LOCATING_LIMIT, upper_half
from ballast.progress import track
from ballast.tune.curriculum import curriculum
from ballast.tune.sparse_adamw import SparseAdamW
from ballast.tune.step import Stepper, train_step

HARMFUL = ("jailbreakbench_harmful", "builtin/harmful/test")
HARMLESS = ("jailbreakbench_benign", "xstest_safe", "builtin/twins/test")
XSTEST_ROWS = 100
UTILITY, UTILITY_ROWS, UTILITY_SEED = "alpaca_5000", 50, 1
RATES = {"full": 2e-5, "lora": 1e-3}
LORA_RANK = 8


class Arm(NamedTuple):
    """How weights are chosen, and the weight of staying close."""

    choice: str
    fraction: float | None
    help_weight: float

    @classmethod
    def parse(cls, text: str) -> Arm:
        found = re.fullmatch(r"(?:(esi|random|bottom|lora|shira)-([\d.]+)|(full|lora))(?:-help([\d.]+))?", text)
        if not found:
            raise SystemExit(f"There is no arm {text!r}; see --help.")
        choice, fraction, whole, weight = found.groups()
        help_weight = float(weight) if weight else HardenSettings.help_weight
        return cls(choice or whole, float(fraction) if fraction else None, help_weight)


@contextmanager
def stepper(lm: LanguageModel, arm: Arm, scores: Scores, rate: float, seed: int) -> Iterator[tuple[Stepper, int]]:
    """The optimizer of an arm and the number of weights that it trains; the model is as before behind it."""
    layers = upper_half(lm)
    parts = [part for part in lm.parts.eligible() if part.layer in layers]
    if arm.choice in ("lora", "shira"):
        eligible = sum(part.numel for part in lm.parts.eligible())
        rank = nearest_rank(parts, round(arm.fraction * eligible)) if arm.fraction else LORA_RANK
        with adapter(lm, arm.choice, parts, rank, seed) as added, DenseAdamW(added.parameters, rate) as optimizer:
            yield optimizer, optimizer.entries
        return
    parameters = {part.name: lm.model.get_parameter(part.name) for part in parts}
    if arm.fraction is None:
        indices = {name: torch.arange(value.numel(), dtype=torch.int32) for name, value in parameters.items()}
    else:
        region = scores.select(arm.fraction, layers=layers, direction="bottom" if arm.choice == "bottom" else "top")
        indices = dict((region.sample_like(seed) if arm.choice == "random" else region).indices)
    with only_trainable(lm.model, set(indices)), SparseAdamW(parameters, indices, lr=rate) as optimizer:
        original = optimizer.current()
        try:
            yield optimizer, optimizer.entries
        finally:
            optimizer.write(original)


def rates(lm: LanguageModel, names: tuple[str, ...], wanted: Verdict, tokens: int) -> dict[str, Any]:
    """Share of answers with a verdict per set, with its interval."""
    judge = get_judge("embedded")
    found = {}
    for name in names:
        prompts: PromptSet = load_prompts(name, limit=XSTEST_ROWS if name.startswith("xstest") else None)
        answers = generate(lm, prompts, max_new_tokens=tokens)
        judged = judge.judge([row.prompt for row in answers], [row.answer for row in answers])
        count = sum(row.verdict is wanted for row in judged)
        interval = wilson(count, len(judged))
        assert interval is not None
        found[name] = {
            "n": len(judged),
            "rate": count / len(judged),
            "low": interval.low,
            "high": interval.high,
            "degenerate": sum(row.verdict is Verdict.DEGENERATE for row in judged),
        }
    return found


def measured(lm: LanguageModel, step: int, tokens: int) -> dict[str, Any]:
    """One point of a curve."""
    rows = log_likelihood(lm, utility())
    weight = sum(row.weight for row in rows)
    return {
        "step": step,
        "attack_success": rates(lm, HARMFUL, Verdict.COMPLIED, tokens),
        "over_refusal": rates(lm, HARMLESS, Verdict.REFUSED, tokens),
        "log_likelihood": {UTILITY: sum(row.value * row.weight for row in rows) / weight, "n": len(rows)},
    }


def utility() -> PromptSet:
    return load_prompts(UTILITY, limit=UTILITY_ROWS, seed=UTILITY_SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--at", type=int, nargs="+", default=[20, 40, 60], help="Steps at which to measure.")
    parser.add_argument("--tokens", type=int, default=24, help="Tokens per answer.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arms = {text: Arm.parse(text) for text in arguments.arms}
    lm = open_model("smollm2")
    rows = training_sets([*(load_prompts(name) for name in (*HARMFUL, *HARMLESS)), utility()])
    settings = HardenSettings(seed=arguments.seed)
    lessons = curriculum(lm, rows.refusals, rows.harmless, settings, Path("runs/own_answers"))
    scores = locate(
        lm, load_prompts(LOCATING, limit=LOCATING_LIMIT, seed=arguments.seed), HARDENING_METHOD, seed=arguments.seed
    )
    untuned: dict[str, Any] | None = None
    for name, arm in arms.items():
        if (FOLDER / "harden" / f"{name}.json").exists():
            continue
        untuned = untuned or measured(lm, 0, arguments.tokens)
        curve, spent, peak = [untuned], 0.0, 0
        rate = RATES.get(arm.choice, settings.learning_rate)
        chosen = dataclasses.replace(settings, learning_rate=rate, help_weight=arm.help_weight)
        with stepper(lm, arm, scores, rate, arguments.seed) as (optimizer, entries):
            for step in track(range(max(arguments.at)), name):
                peak_anew()
                start = time.perf_counter()
                train_step(lm, optimizer, lessons, chosen, step)
                spent += time.perf_counter() - start
                peak = max(peak, status(os.getpid(), "VmHWM"))
                if step + 1 in arguments.at:
                    curve.append(measured(lm, step + 1, arguments.tokens))
                    print(name, curve[-1], flush=True)
        write_result(
            f"harden/{name}",
            settings={**vars(arguments), **arm._asdict(), "harden": dataclasses.asdict(chosen)},
            results={
                "trained_entries": entries,
                "seconds_per_step": spent / max(arguments.at),
                "peak_bytes": peak,
                "curve": curve,
            },
        )


if __name__ == "__main__":
    main()
