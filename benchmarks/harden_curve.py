"""Attack success against over-refusal while a model is hardened: the whole curve, for one way of choosing weights.

Each arm trains on the built-in tune split and is measured at several steps on sets that share nothing with it. Arms:

    esi, random, bottom        a region of --fraction of the weights: by ESI, random with as many weights per tensor, or
                               with the smallest scores above zero
    full                       all eligible weights
    lora                       rank-8 LoRA on all projections

Run `BALLAST_DATA=... python benchmarks/harden_curve.py --arm esi`; it writes `results/harden/<arm>....json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from results import write_result

from ballast import HardenSettings, LanguageModel, PromptSet, Region, load_prompts, locate, open_model
from ballast.evaluate.answers import generate
from ballast.evaluate.statistics import wilson
from ballast.evaluate.utility import log_likelihood
from ballast.judges import Verdict, get_judge
from ballast.locate.engine import eligible_parameters, only_trainable
from ballast.pipeline import HARDENING_METHOD
from ballast.progress import track
from ballast.tune.harden import HARMLESS, REFUSALS
from ballast.tune.lessons import Curriculum, help_lessons, refusal_lessons
from ballast.tune.sparse_adamw import SparseAdamW
from ballast.tune.step import Stepper, train_step

HARMFUL = {"jailbreakbench_harmful": None, "xstest_unsafe_contrast": 100, "builtin/harmful/test": None}
HARMLESS_TEST = {"jailbreakbench_benign": None, "xstest_safe": 100, "builtin/twins/test": None}
UTILITY = ("alpaca_5000", 100)
RATES = {"full": 2e-5, "lora": 1e-3}


class LoraAdamW:
    """AdamW on the adapters of a peft model, with the interface of `SparseAdamW`."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def gradient_norm(self) -> float:
        return float(torch.nn.utils.get_total_norm([value.grad for value in self.parameters if value.grad is not None]))

    def step(self, scale: float = 1.0) -> None:
        for value in self.parameters:
            if value.grad is not None:
                value.grad.mul_(scale)
        self.optimizer.step()
        self.optimizer.zero_grad()


@contextmanager
def stepper(lm: LanguageModel, arm: str, fraction: float, rate: float, seed: int) -> Iterator[tuple[Stepper, int]]:
    """The optimizer of an arm and the number of weights that it trains."""
    if arm == "lora":
        config = peft.LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(lm.model, config)
        trained = [value.requires_grad_(True) for name, value in wrapped.named_parameters() if "lora_" in name]
        for value in trained:
            value.data = value.data.float()
        yield LoraAdamW(trained, rate), sum(value.numel() for value in trained)
        return
    parameters = eligible_parameters(lm)
    if arm == "full":
        indices = {name: torch.arange(value.numel(), dtype=torch.int32) for name, value in parameters.items()}
    else:
        indices = dict(region_of(lm, arm, fraction, seed).indices)
    with only_trainable(lm.model, set(indices)), SparseAdamW(parameters, indices, lr=rate) as optimizer:
        yield optimizer, optimizer.entries


def region_of(lm: LanguageModel, arm: str, fraction: float, seed: int) -> Region:
    scores = locate(lm, load_prompts(REFUSALS), HARDENING_METHOD, seed=seed, batch_size=16)
    if arm == "bottom":
        return scores.select(fraction, direction="bottom")
    region = scores.select(fraction)
    return region if arm == "esi" else region.sample_like(seed)


def rates(lm: LanguageModel, sets: dict[str, int | None], wanted: Verdict, tokens: int) -> dict[str, Any]:
    judge = get_judge("embedded")
    found = {}
    for name, limit in sets.items():
        prompts: PromptSet = load_prompts(name, limit=limit)
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
    rows = log_likelihood(lm, load_prompts(UTILITY[0], limit=UTILITY[1]))
    weight = sum(row.weight for row in rows)
    return {
        "step": step,
        "attack_success": rates(lm, HARMFUL, Verdict.COMPLIED, tokens),
        "over_refusal": rates(lm, HARMLESS_TEST, Verdict.REFUSED, tokens),
        "log_likelihood": {UTILITY[0]: sum(row.value * row.weight for row in rows) / weight, "n": len(rows)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True, choices=("esi", "random", "bottom", "full", "lora"))
    parser.add_argument("--fraction", type=float, default=0.01)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--help-weight", type=float, default=HardenSettings.help_weight)
    parser.add_argument("--at", type=int, nargs="+", default=[0, 30, 60, 100])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rate = arguments.learning_rate or RATES.get(arguments.arm, HardenSettings.learning_rate)
    settings = HardenSettings(
        steps=max(arguments.at), learning_rate=rate, help_weight=arguments.help_weight, seed=arguments.seed
    )
    lm = open_model("smollm2")
    name = arguments.arm if arguments.arm in ("full", "lora") else f"{arguments.arm}-{arguments.fraction:g}"
    name += "" if arguments.help_weight == HardenSettings.help_weight else f"-help{arguments.help_weight:g}"
    harmless = [load_prompts(spec) for spec in HARMLESS]
    lessons = Curriculum(
        refusal_lessons(lm, load_prompts(REFUSALS), settings.refusal_tokens),
        help_lessons(lm, harmless, settings.answer_tokens, Path("runs/own_answers")),
        settings.seed,
    )
    curve = []
    with stepper(lm, arguments.arm, arguments.fraction, rate, arguments.seed) as (optimizer, entries):
        if 0 in arguments.at:
            curve.append(measured(lm, 0, arguments.tokens))
        start, spent = time.perf_counter(), 0.0
        for step in track(range(settings.steps), name):
            start = time.perf_counter()
            train_step(lm, optimizer, lessons, settings, step)
            spent += time.perf_counter() - start
            if step + 1 in arguments.at:
                curve.append(measured(lm, step + 1, arguments.tokens))
                print(name, curve[-1], flush=True)
    write_result(
        f"harden/{name}",
        settings={**vars(arguments), "harden": dataclasses.asdict(settings)},
        results={"trained_entries": entries, "seconds_per_step": spent / settings.steps, "curve": curve},
    )


if __name__ == "__main__":
    main()
