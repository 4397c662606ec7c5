"""What locating costs beside a plain forward and backward over the same batches: time, and peak memory.

Each arm runs in a process of its own, so that peak resident memory is its own; arms take turns, so that a busy machine
is busy for all. Writes `results/locate_cost.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from results import write_result

from ballast import load_prompts, open_model
from ballast.locate.engine import accumulate, eligible_parameters, only_trainable, weighted_likelihood
from ballast.locate.references import refusal_rows

ROWS, BATCH = 64, 8
ARMS = ("model and buffer", "plain", "locate")


def run_arm(arm: str) -> dict[str, float]:
    """Seconds and peak bytes of one arm, measured in this process."""
    lm = open_model("smollm2")
    rows = refusal_rows(lm, load_prompts("builtin/refusals", limit=ROWS), ())
    rows.sort(key=lambda row: len(row.rendered.ids), reverse=True)
    if arm == "model and buffer":  # what must be in memory in any case, written to once
        buffers = [torch.zeros_like(value, dtype=torch.float32).add_(1) for value in eligible_parameters(lm).values()]
        held = sum(value.numel() * 4 for value in buffers) + sum(
            value.numel() * value.itemsize for value in lm.model.parameters()
        )
        return {"seconds": 0.0, "peak": peak(), "held": held}
    accumulate(lm, rows[:BATCH], fold="sum", batch_size=BATCH)  # warm-up, for both arms alike
    start = time.perf_counter()
    if arm == "locate":
        accumulate(lm, rows, fold="sum", batch_size=BATCH)
    else:
        with only_trainable(lm.model, set(eligible_parameters(lm))):
            for first in range(0, len(rows), BATCH):
                weighted_likelihood(lm, rows[first : first + BATCH]).backward()
                lm.model.zero_grad(set_to_none=True)
    return {"seconds": time.perf_counter() - start, "peak": peak()}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.arm:
        print(json.dumps(run_arm(arguments.arm)))
        return
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(arguments.repeats):
        for arm in ARMS:
            command = [sys.executable, __file__, "--arm", arm, "--threads", str(arguments.threads)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured[arm].append(json.loads(printed.splitlines()[-1]))
            print(arm, measured[arm][-1], flush=True)
    ratios = [
        locate["seconds"] / plain["seconds"]
        for locate, plain in zip(measured["locate"], measured["plain"], strict=True)
    ]
    middle = {arm: statistics.median(row["peak"] for row in rows) for arm, rows in measured.items()}
    write_result(
        "locate_cost",
        settings={"rows": ROWS, "batch": BATCH, "threads": arguments.threads, "repeats": arguments.repeats},
        results={
            "runs": measured,
            "time_ratio_to_plain": {"median": statistics.median(ratios), "all": ratios},
            "peak_bytes": middle,
            "peak_ratio_to_plain": middle["locate"] / middle["plain"],
            "peak_ratio_to_model_and_buffer": middle["locate"] / middle["model and buffer"],
        },
    )


if __name__ == "__main__":
    main()
