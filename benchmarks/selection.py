"""Exact selection of 1 % of 100 million scores on one core, beside a full sort and top-k.

Run `python benchmarks/selection.py`; it needs about 3 GB and a minute, and writes `benchmarks/results/selection.json`.
Wall times are the best and the median of the repeats, processor time is the best; the sort and top-k run once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from results import write_result

from ballast.regions.selection import indices_beyond
from ballast.regions.threshold import exact_threshold


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def scores_like(kind: str, n: int, seed: int) -> torch.Tensor:
    """Magnitudes like weight times gradient: `smooth` in fp32, `tied` rounded to bf16; or `constant`, all equal."""
    if kind == "constant":
        return torch.ones(n)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, generator=generator).mul_(torch.randn(n, generator=generator)).abs_()
    return scores.bfloat16().float() if kind == "tied" else scores


def measure(kind: str, n: int, k: int, repeats: int, seed: int) -> dict[str, Any]:
    scores = {"scores": scores_like(kind, n, seed)}
    threshold_times, index_times, processor_times = [], [], []
    for _ in range(repeats):
        start = time.thread_time()
        elapsed, cut = seconds(lambda: exact_threshold(scores, k))
        threshold_times.append(elapsed)
        elapsed, found = seconds(lambda cut=cut: dict(indices_beyond(scores, ["scores"], cut))["scores"])
        index_times.append(elapsed)
        processor_times.append(time.thread_time() - start)
    totals = [a + b for a, b in zip(threshold_times, index_times, strict=True)]
    topk_seconds, top = seconds(lambda: scores["scores"].topk(k, sorted=False))
    equals_topk = float(top.values.min()) == cut.value
    del top
    sort_seconds, ordered = seconds(lambda: scores["scores"].sort(descending=True, stable=True).indices[:k])
    return {
        "scores": kind,
        "ballast": {
            "threshold_seconds": round(min(threshold_times), 3),
            "indices_seconds": round(min(index_times), 3),
            "total_seconds": round(min(totals), 3),
            "total_seconds_median": round(statistics.median(totals), 3),
            "total_processor_seconds": round(min(processor_times), 3),
        },
        "torch_topk_seconds": round(topk_seconds, 3),
        "torch_sort_seconds": round(sort_seconds, 3),
        "ties_at_the_cut": cut.ties_total,
        "identical_to_sort": equals_topk and torch.equal(torch.from_numpy(found), ordered.sort().values.int()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"n": arguments.n, "k": arguments.n // 100, "repeats": arguments.repeats, "seed": 0, "threads": 1}
    rows = []
    for kind in ("smooth", "tied", "constant"):
        rows.append(measure(kind, settings["n"], settings["k"], settings["repeats"], settings["seed"]))
        print(rows[-1], flush=True)
    write_result("selection", settings=settings, results=rows)


if __name__ == "__main__":
    main()
