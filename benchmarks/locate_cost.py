"""What locating costs beside a plain forward and backward over the same batches: time, and peak memory.

Times are taken in one process in which the two arms take turns, so that a busy machine is busy for both. Peak resident
memory is taken in a process for each arm. Writes `results/NAME.json` with the variables that steer the allocator of
glibc, if any: on a virtual machine with slow page faults what it hands back and asks for again decides the times.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
from results import write_result

from ballast import LanguageModel, load_prompts, open_model
from ballast.locate.engine import accumulate, eligible_parameters, only_trainable, weighted_likelihood
from ballast.locate.references import refusal_rows
from ballast.locate.rows import WeightedRow

ROWS, BATCH = 64, 8
ARMS = ("model and buffer", "plain", "locate")


def prepared() -> tuple[LanguageModel, list[WeightedRow]]:
    """The model, and rows from the longest to the shortest."""
    lm = open_model("smollm2")
    rows = refusal_rows(lm, load_prompts("builtin/refusals", limit=ROWS), ())
    return lm, sorted(rows, key=lambda row: len(row.rendered.ids), reverse=True)


def work(lm: LanguageModel, rows: list[WeightedRow], arm: str) -> None:
    if arm == "locate":
        accumulate(lm, rows, fold="sum", batch_size=BATCH)
        return
    with only_trainable(lm.model, set(eligible_parameters(lm))):
        for first in range(0, len(rows), BATCH):
            weighted_likelihood(lm, rows[first : first + BATCH]).backward()
            lm.model.zero_grad(set_to_none=True)


def times(repeats: int) -> list[dict[str, dict[str, float]]]:
    """Seconds and processor seconds of both arms in turns; which goes first alternates."""
    lm, rows = prepared()
    work(lm, rows[:BATCH], "locate")  # warm-up, for both arms alike
    found = []
    for turn in range(repeats):
        both = {}
        for arm in ("plain", "locate") if turn % 2 == 0 else ("locate", "plain"):
            start, processor = time.perf_counter(), time.process_time()
            work(lm, rows, arm)
            both[arm] = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
        print(both, flush=True)
        found.append(both)
    return found


def peak(arm: str) -> int:
    """Peak resident bytes of one arm, measured in this process."""
    lm, rows = prepared()
    if arm == "model and buffer":  # what must be in memory in any case, written to once
        buffers = [torch.zeros_like(value, dtype=torch.float32).add_(1) for value in eligible_parameters(lm).values()]
        assert buffers
    else:
        work(lm, rows, arm)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak-of", choices=ARMS, help="Print the peak bytes of one arm and write nothing.")
    parser.add_argument("--name", default="locate_cost", help="Name of the result.")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(peak(arguments.peak_of))
        return
    peaks = {}
    for arm in ARMS:
        command = [sys.executable, __file__, "--peak-of", arm, "--threads", str(arguments.threads)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[arm] = int(printed.splitlines()[-1])
    turns = times(arguments.repeats)
    ratios = {
        clock: [turn["locate"][clock] / turn["plain"][clock] for turn in turns] for clock in ("seconds", "processor")
    }
    allocator = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    write_result(
        arguments.name,
        settings={
            "rows": ROWS,
            "batch": BATCH,
            "threads": arguments.threads,
            "repeats": arguments.repeats,
            "allocator": allocator,
        },
        results={
            "turns": turns,
            "ratio_to_plain": {
                clock: {"median": statistics.median(found), "all": found} for clock, found in ratios.items()
            },
            "peak_bytes": peaks,
            "peak_ratio_to_plain": peaks["locate"] / peaks["plain"],
            "peak_ratio_to_model_and_buffer": peaks["locate"] / peaks["model and buffer"],
        },
    )


if __name__ == "__main__":
    main()
