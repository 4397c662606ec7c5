"""Planted truth: teach SmolLM2 refusal by training known weights only, then ask every method to find them.

Four kinds of weights, drawn by a seed: a random mask over all layers, neurons of one layer, a random part of one layer,
and whole matrices that get a low-rank change. Beside each stands a decoy, a region of the same kind that was taught
something else before, and the same methods on the untaught model. Methods see 64 harmful prompts with refusals that
share nothing with what taught. Run `python benchmarks/planted.py`; it writes `results/planted/untaught-SEED.json` and
`results/planted/KIND-SEED.json` and leaves alone what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from results import FOLDER, write_result

from ballast import HardenSettings, LanguageModel, PromptSet, load_prompts, locate, locate_all, open_model
from ballast.judges import get_judge
from ballast.locate import METHODS, Scores, UnitScores, WeightScores
from ballast.pipeline import LOCATING, upper_half
from ballast.prompts.overlap import without_near_duplicates
from ballast.regions import (
    Region,
    at_planted_size,
    neuron_group,
    random_mask,
    ranked_recovery,
    recovery,
    unit_recovery,
    units_of,
    whole_parameters,
)
from ballast.regions.units import UnitKind, touched
from ballast.tune.checks import check
from ballast.tune.curriculum import Curriculum, curriculum
from ballast.tune.harden import SELECT_HARMFUL
from ballast.tune.lessons import refusal_lessons
from ballast.tune.teach import Taught, taught

PROMPTS, PROMPT_SEED = 64, 0
HARMLESS = {"builtin/twins/tune": 100, "builtin/ordinary/tune": 50}
DECOY = "builtin/answers"
SELECT_HARMLESS = "builtin/twins/select"
UNITS: dict[str, int | None] = {"neurons": None, "safety_layers": None, "ships": 8}  # and how many prompts they see
SLOW = {"sahara": "takes ten minutes each time it is asked"}
PROMPTS_ONLY = ("nothing", "harmful prompts", "harmful prompts with refusals", "harmful and harmless prompts")
ENTRIES = 1_061_683  # 1 % of the eligible weights of SmolLM2, in every kind that can hold as many
NEURONS = 614  # as many weights again, of the 1,536 neurons of a layer
MATRICES, RANK = 3, 4
TEACHING = HardenSettings(
    steps=40,
    refusals_per_step=8,
    answers_per_step=16,
    endings_per_step=0,
    refusal_tokens=12,
    micro_batch=12,
    help_weight=8.0,
)


class Kind(NamedTuple):
    """A way to plant.

    Attributes:
        regions: The planted region and the decoy, from the model, two layers and a seed.
        units: What can be found beside single weights.
        rank: Of the change; None for single weights.
        learning_rate: Peak rate of teaching.
    """

    regions: Callable[[LanguageModel, list[int], int], tuple[Region, Region]]
    units: tuple[UnitKind, ...]
    rank: int | None = None
    learning_rate: float = 2e-3


def masks(lm: LanguageModel, _: list[int], seed: int) -> tuple[Region, Region]:
    planted = random_mask(lm, ENTRIES, seed)
    return planted, random_mask(lm, ENTRIES, seed + 1) - planted


def neurons(lm: LanguageModel, layers: list[int], seed: int) -> tuple[Region, Region]:
    return neuron_group(lm, NEURONS, seed, layer=layers[0]), neuron_group(lm, NEURONS, seed, layer=layers[1])


def parts_of_layers(lm: LanguageModel, layers: list[int], seed: int) -> tuple[Region, Region]:
    return random_mask(lm, ENTRIES, seed, layers=layers[:1]), random_mask(lm, ENTRIES, seed, layers=layers[1:])


def matrices(lm: LanguageModel, _: list[int], seed: int) -> tuple[Region, Region]:
    planted = whole_parameters(lm, MATRICES, seed, layers=upper_half(lm))
    return planted, whole_parameters(lm, MATRICES, seed + 1, layers=upper_half(lm)) - planted


KINDS = {
    "random_mask": Kind(masks, ()),
    "neuron_group": Kind(neurons, ("layer", "matrix", "neuron")),
    "layer": Kind(parts_of_layers, ("layer",)),
    "low_rank": Kind(matrices, ("layer", "matrix"), RANK, 4e-3),
}


def drawn(lm: LanguageModel, kind: Kind, seed: int) -> tuple[Region, Region]:
    """What is planted, and the decoy; two layers are drawn from the upper half, where a step of teaching is cheap."""
    return kind.regions(lm, random.Random(seed).sample(list(upper_half(lm)), 2), seed)


def compared(lm: LanguageModel, kind: Kind, scores: Mapping[str, torch.Tensor], region: Region) -> dict[str, Any]:
    """What the highest scores share with a region, as single weights and as units."""
    found = at_planted_size(scores, region, lm.parts.eligible())
    return {
        "weights": recovery(found, region)._asdict(),
        "units": [unit_recovery(found, region, units_of(lm, unit))._asdict() for unit in kind.units],
    }


def compared_units(scores: UnitScores, region: Region) -> dict[str, Any]:
    """Whether the units of each kind that own planted weights have the highest scores; nothing where all or none do."""
    found = {}
    for kind in sorted({group.kind for group in scores.groups}):
        own = [number for number, group in enumerate(scores.groups) if group.kind == kind]
        truth = np.concatenate([touched(scores.groups[number], region.indices).numpy() for number in own])
        if 0 < truth.sum() < len(truth):
            values = np.concatenate([scores.values[number].numpy() for number in own])
            found[kind] = ranked_recovery(kind, values, truth)._asdict()
    return found


def left_out() -> dict[str, str]:
    """Registered methods that are not asked, and why."""
    reasons = {name: f"needs {method.needs}" for name, method in METHODS.items() if method.needs not in PROMPTS_ONLY}
    return {name: reason for name, reason in (reasons | SLOW).items() if name not in UNITS}


def scored(lm: LanguageModel, prompts: PromptSet, seed: int) -> list[Scores]:
    """The scores of all methods, those of weights with shared passes."""
    weights = sorted(METHODS.keys() - left_out().keys() - UNITS.keys())
    found = locate_all(lm, prompts, weights, seed=seed)
    units = [locate(lm, prompts if few is None else prompts.sample(few), name) for name, few in UNITS.items()]
    return [*found, *units]


def asked(lm: LanguageModel, kind: Kind, scores: Scores, region: Region) -> dict[str, Any]:
    """What one method shares with one region."""
    if isinstance(scores, UnitScores):
        return compared_units(scores, region)
    assert isinstance(scores, WeightScores)
    return compared(lm, kind, scores.values, region)


def untaught(lm: LanguageModel, prompts: PromptSet, seed: int) -> dict[str, Any]:
    """What every method shares with all regions and decoys while nothing has been taught."""
    regions = {name: drawn(lm, kind, seed) for name, kind in KINDS.items()}
    found: dict[str, dict[str, Any]] = {name: {} for name in KINDS}
    for scores in scored(lm, prompts, seed):
        for name, kind in KINDS.items():
            planted, decoy = (asked(lm, kind, scores, region) for region in regions[name])
            found[name][scores.method] = {"planted": planted, "decoy": decoy}
        print("untaught", scores.method, flush=True)
    return {"check": measured(lm, 0), "kinds": found, "left_out": left_out()}


def measured(lm: LanguageModel, step: int) -> dict[str, float]:
    """How often the model refuses, on prompts that neither taught nor located."""
    harmful, harmless = load_prompts(SELECT_HARMFUL), load_prompts(SELECT_HARMLESS)
    return check(lm, get_judge(TEACHING.judge), harmful, [harmless], step, TEACHING.check_tokens)._asdict()


def taught_and_asked(
    lm: LanguageModel, kind: Kind, prompts: PromptSet, lessons: dict[str, Curriculum], seed: int
) -> dict[str, Any]:
    """Teach the decoy, then refusal, and ask every method."""
    region, decoy = drawn(lm, kind, seed)
    settings = dataclasses.replace(TEACHING, learning_rate=kind.learning_rate, seed=seed)
    other = dataclasses.replace(settings, answers_per_step=0)
    with (
        taught(lm, decoy, lessons["decoy"], other, rank=kind.rank) as before,
        taught(lm, region, lessons["refusal"], settings, rank=kind.rank) as teaching,
    ):
        checked = measured(lm, settings.steps)
        print(checked, flush=True)
        methods: dict[str, Any] = {"oracle": {"planted": compared(lm, kind, movement(lm, teaching), region)}}
        for scores in scored(lm, prompts, seed):
            found, beside = (asked(lm, kind, scores, one) for one in (region, decoy))
            methods[scores.method] = {"planted": found, "decoy": beside}
            print(scores.method, found.get("weights", found), flush=True)
    return {
        "planted": region.metadata.settings | {"entries": len(region)},
        "decoy": decoy.metadata.settings | {"entries": len(decoy)},
        "loss": {"refusal": ends(teaching.steps), "decoy": ends(before.steps)},
        "mean_change": sum(float(value.sum()) for value in teaching.moved.values()) / len(region),
        "check": checked,
        "methods": methods,
    }


def movement(lm: LanguageModel, teaching: Taught) -> dict[str, torch.Tensor]:
    """|taught - untaught| of every eligible weight: what a method could find at best, as not every weight moves."""
    return {part.name: teaching.moved.get(part.name, torch.zeros(part.shape)) for part in lm.parts.eligible()}


def ends(steps: list[dict[str, float]]) -> list[float]:
    """The loss of what is taught, mean over the first and the last five steps, nats per token."""
    return [sum(row["refuse"] for row in part) / len(part) for part in (steps[:5], steps[-5:])]


def teachings(lm: LanguageModel, prompts: PromptSet, seed: int) -> dict[str, Curriculum]:
    """Rows for teaching refusal and for teaching something else; they share no prompt with `prompts`."""
    rows = without_near_duplicates(load_prompts(LOCATING), [prompts])
    harmless = [
        without_near_duplicates(load_prompts(name), [prompts]).sample(limit, seed) for name, limit in HARMLESS.items()
    ]
    answers = refusal_lessons(lm, [load_prompts(DECOY)], TEACHING.refusal_tokens)  # rows with any response will do
    return {
        "refusal": curriculum(lm, [rows], harmless, dataclasses.replace(TEACHING, seed=seed), None),
        "decoy": Curriculum(answers, [], seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="One draw of every region for each.")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = open_model("smollm2")
    prompts = load_prompts(LOCATING, limit=PROMPTS, seed=PROMPT_SEED)
    settings = {
        "prompts": prompts.identity(),
        "methods_of_units": UNITS,
        "harmless": HARMLESS,
        "decoy": DECOY,
        "teaching": dataclasses.asdict(TEACHING),
        "learning_rates": {name: kind.learning_rate for name, kind in KINDS.items()},
        "rank": RANK,
    }
    for seed in arguments.seeds:
        lessons = teachings(lm, prompts, seed)
        works = {"untaught": partial(untaught, lm, prompts, seed)}
        works |= {name: partial(taught_and_asked, lm, kind, prompts, lessons, seed) for name, kind in KINDS.items()}
        for name, work in works.items():
            result = f"planted/{name}-{seed}"
            if not (FOLDER / f"{result}.json").exists():
                start = time.perf_counter()
                found = work()
                spent = round(time.perf_counter() - start)
                write_result(result, settings=settings | {"seed": seed}, results=found | {"seconds": spent})


if __name__ == "__main__":
    main()
