"""What a step of SET costs beside a plain forward and backward, dense AdamW and PEFT's adapters: time and memory.

Every arm is a `train_step` of `harden` over the same 8 rows of 64 tokens, 5 of them a refusal's:

    plain           no optimizer; each gradient is dropped as soon as autograd finishes it
    SET             `SparseAdamW` on a random region with 1 % of the eligible weights
    dense, masked   torch's AdamW on all eligible weights; with gradients multiplied by the mask of that region, as
                    published code does it, which without weight decay leaves nothing to put back
    lora, shira     PEFT, with the rank that trains a number of weights nearest to SET's

each with all layers and with the upper half, and plain also with gradients of every parameter. The rate is so small
that no weight changes, so all work on the same weights.

Times are taken in one process in which the arms take turns, each behind a step that is not counted. Peak resident
memory is that of two steps in a process of its own, several times. Bytes are counted from tensors. Writes
`results/tune_cost.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from memory_formula import llama_3_8b
from results import write_result
from stand_ins import DenseAdamW, Dropped, adapter, nearest_rank
from streaming import peak_anew, status

from ballast import HardenSettings, LanguageModel, open_model
from ballast.locate.engine import only_trainable
from ballast.pipeline import upper_half
from ballast.prompts.chat import Rendered
from ballast.regions.planted import random_mask
from ballast.tune.curriculum import Curriculum
from ballast.tune.objective import Lesson
from ballast.tune.sparse_adamw import SparseAdamW
from ballast.tune.step import Stepper, train_step

ROWS, TOKENS, FRACTION, SEED = 8, 64, 0.01, 0
SETTINGS = HardenSettings(learning_rate=1e-30, refusals_per_step=ROWS, answers_per_step=0, endings_per_step=0)
CLOCKS = ("seconds", "processor")
DTYPES = ("float32", "bfloat16")
KINDS = ("plain", "SET", "dense", "masked", "lora", "shira")
LAYERS = ("all layers", "upper half")
EVERY = "every parameter"


class Arm(NamedTuple):
    """What trains, and where; `str` gives its name."""

    kind: str
    layers: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.layers}"


ARMS = {str(arm): arm for arm in (*(Arm(kind, layers) for layers in LAYERS for kind in KINDS), Arm("plain", EVERY))}


class Optimizer(Stepper, Protocol):
    """What all arms have."""

    entries: int

    @property
    def state_bytes(self) -> int: ...


@contextmanager
def optimizer_of(lm: LanguageModel, arm: Arm) -> Iterator[Optimizer]:
    """The optimizer of an arm; the model is as before behind the block."""
    layers = upper_half(lm) if arm.layers == "upper half" else None
    parts = [part for part in lm.parts.eligible() if layers is None or part.layer in layers]
    count = int(FRACTION * sum(part.numel for part in lm.parts.eligible()))
    if arm.kind in ("lora", "shira"):
        with (
            adapter(lm, arm.kind, parts, nearest_rank(parts, count), SEED) as added,
            DenseAdamW(added.parameters, SETTINGS.learning_rate, beside=added.bytes) as optimizer,
        ):
            yield optimizer
        return
    everything = dict(lm.model.named_parameters())
    chosen = everything if arm.layers == EVERY else {part.name: everything[part.name] for part in parts}
    with only_trainable(lm.model, set(chosen)), made(lm, arm.kind, chosen, count, layers) as optimizer:
        yield optimizer


def made(
    lm: LanguageModel, kind: str, parameters: dict[str, torch.nn.Parameter], count: int, layers: range | None
) -> Dropped | DenseAdamW | SparseAdamW:
    """The optimizer of a kind that works on the model's own weights."""
    if kind == "plain":
        return Dropped(list(parameters.values()))
    if kind == "dense":
        return DenseAdamW(list(parameters.values()), SETTINGS.learning_rate)
    indices = random_mask(lm, count, SEED, layers=layers).indices
    if kind == "SET":
        return SparseAdamW(parameters, indices, lr=SETTINGS.learning_rate)
    masks = [torch.zeros_like(value, requires_grad=False) for value in parameters.values()]
    for mask, name in zip(masks, parameters, strict=True):
        mask.view(-1)[indices[name]] = 1
    return DenseAdamW(list(parameters.values()), SETTINGS.learning_rate, masks=masks)


def opened(dtype: str) -> tuple[LanguageModel, Curriculum]:
    """The model, and rows of random tokens."""
    lm = open_model("smollm2", dtype=dtype, device="cpu")
    draw = random.Random(SEED)
    prompt = TOKENS - SETTINGS.refusal_tokens
    rows = [
        Lesson(f"row-{number}", Rendered([draw.randrange(lm.model.config.vocab_size) for _ in range(TOKENS)], prompt))
        for number in range(ROWS)
    ]
    return lm, Curriculum(rows, [], SEED)


def turn(lm: LanguageModel, rows: Curriculum, arm: Arm, steps: int) -> dict[str, float]:
    """Seconds and processor seconds per step."""
    with optimizer_of(lm, arm) as optimizer:
        train_step(lm, optimizer, rows, SETTINGS, 0)
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            train_step(lm, optimizer, rows, SETTINGS, 0)
        return {
            "seconds": (time.perf_counter() - start) / steps,
            "processor": (time.process_time() - processor) / steps,
        }


def times(dtype: str, turns: int, steps: int) -> list[dict[str, dict[str, float]]]:
    """All arms in turns; every other turn begins with the last arm."""
    lm, rows = opened(dtype)
    found = []
    for number in range(turns):
        order = list(ARMS)[:: 1 if number % 2 == 0 else -1]
        found.append({name: turn(lm, rows, ARMS[name], steps) for name in order})
        print(dtype, {name: round(found[-1][name]["seconds"], 3) for name in ARMS}, flush=True)
    return found


def ratios(turns: list[dict[str, dict[str, float]]], clock: str, base: str | None) -> dict[str, Any]:
    """Each arm against a plain one, turn by turn; by default the one with gradients of the same weights."""
    found = {}
    for name, arm in ARMS.items():
        values = [row[name][clock] / row[base or str(Arm("plain", arm.layers))][clock] for row in turns]
        found[name] = {"median": statistics.median(values), "all": values}
    return found


def memory(dtype: str, arm: Arm, steps: int) -> dict[str, int]:
    """Bytes of one arm, measured in this process."""
    lm, rows = opened(dtype)
    opened_at = status(os.getpid(), "VmRSS")
    with optimizer_of(lm, arm) as optimizer:
        peak_anew()
        for _ in range(steps):
            train_step(lm, optimizer, rows, SETTINGS, 0)
        dropped = isinstance(optimizer, SparseAdamW | Dropped)
        return {
            "trained_weights": optimizer.entries,
            "state_bytes": optimizer.state_bytes,
            "largest_gradient_bytes": lm.model.dtype.itemsize * largest_trained(lm) if dropped else 0,
            "peak_above_model": status(os.getpid(), "VmHWM") - opened_at,
        }


def largest_trained(lm: LanguageModel) -> int:
    """Weights of the largest parameter that gets a gradient."""
    return max(value.numel() for value in lm.model.parameters() if value.requires_grad)


def memory_in_process(dtype: str, name: str, threads: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--memory-of", name, "--dtype", dtype, "--threads", str(threads)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, int] = json.loads(printed.splitlines()[-1])
    return found


def memory_of_all(dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Each arm in a process of its own; the share of dense AdamW on the same layers behind it."""
    found: dict[str, Any] = {}
    for name in ARMS:
        runs = [memory_in_process(dtype, name, arguments.threads) for _ in range(arguments.memory_turns)]
        above = [row.pop("peak_above_model") for row in runs]
        found[name] = {**runs[0], "peak_above_model": {"median": statistics.median(above), "all": above}}
        print(dtype, name, found[name], flush=True)
    for row in found.values():
        row["held_bytes"] = row["state_bytes"] + row["largest_gradient_bytes"]
    for name, arm in ARMS.items():
        for kind in ("dense", "masked"):
            whole = found[str(Arm(kind, arm.layers if arm.layers in LAYERS else LAYERS[0]))]["held_bytes"]
            found[name][f"share_of_{kind}"] = found[name]["held_bytes"] / whole
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-of", choices=ARMS, help="Print the bytes of one arm and write nothing.")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="Of the model, with --memory-of.")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="Counted steps of an arm in one turn.")
    parser.add_argument("--memory-turns", type=int, default=3, help="Processes per arm in which the peak is taken.")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(memory(arguments.dtype, ARMS[arguments.memory_of], steps=2)))
        return
    results = {}
    for dtype in DTYPES:
        bytes_of_arms = memory_of_all(dtype, arguments)
        turns = times(dtype, arguments.turns, arguments.steps)
        results[dtype] = {
            "memory": bytes_of_arms,
            "turns": turns,
            "ratio_to_plain_of_the_same_layers": {clock: ratios(turns, clock, None) for clock in CLOCKS},
            "ratio_to_plain_of_every_parameter": {
                clock: ratios(turns, clock, str(Arm("plain", EVERY))) for clock in CLOCKS
            },
        }
    write_result(
        "tune_cost",
        settings={
            "rows": ROWS,
            "tokens": TOKENS,
            "fraction": FRACTION,
            "seed": SEED,
            "turns": arguments.turns,
            "steps": arguments.steps,
            "memory_turns": arguments.memory_turns,
            "threads": arguments.threads,
            "allocator": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        },
        results={**results, "llama_3_8b_bfloat16": llama_3_8b()},
    )


if __name__ == "__main__":
    main()
