"""What comparing regions costs on one core: the IoU of packed bits, the test of a pair, and a matrix of many regions.

Run `python benchmarks/overlap.py`; it writes `benchmarks/results/overlap.json`. Regions are drawn at random. By default
the packed pair has 8 billion weights (2 GB), and the matrix has 40 regions of a tenth of that, read from files tensor
by tensor; `--scale 0.01` makes both a hundredth. The matrix is run at a quarter, a half and all of its size, to show
that cost is linear. Peak memory is that of the process up to there.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import write_result

from ballast.regions import ModelIdentity, Region, RegionFile, RegionMetadata, overlaps
from ballast.regions.bits import shared_count
from ballast.regions.chance import permutation_test
from ballast.regions.layout import Orientation, layout_of

PAIR_WEIGHTS = 8_000_000_000
MATRIX_WEIGHTS = 800_000_000
TENSOR = (4096, 4096)
SMOLLM2 = {"query": (576, 576), "key": (192, 576), "value": (192, 576), "output": (576, 576)} | {
    "gate": (1536, 576),
    "up": (1536, 576),
    "down": (576, 1536),
}
REPEATS = 5


@dataclass(frozen=True)
class Tensor:
    name: str
    layer: int | None
    role: str
    shape: tuple[int, ...]
    orientation: Orientation = "out_in"
    expert_dim: int | None = None


def gigabytes() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def packed_pair(weights: int) -> dict[str, Any]:
    """The IoU of two regions in memory, one bit a weight."""
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 2**64, weights // 64, np.uint64) for _ in range(2))
    sizes = [int(np.bitwise_count(one).sum(dtype=np.int64)) for one in (first, second)]
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        both = shared_count(first, second)
        seconds.append(time.perf_counter() - start)
    iou = both / (sum(sizes) - both)
    return {"weights": weights, "seconds": round(min(seconds), 4), "all_seconds": seconds, "iou": round(iou, 6)}


def test_of_a_pair(draws: int) -> dict[str, Any]:
    """1,000 permutations of regions with 1 % of every matrix of SmolLM2."""
    sizes = np.array([rows * columns for rows, columns in SMOLLM2.values()] * 30, np.int64)
    selected = sizes // 100
    start = time.perf_counter()
    found = permutation_test(int(selected.sum() // 100), selected, selected, sizes, draws=draws, seed=(0,))
    return {"weights": int(sizes.sum()), "seconds": round(time.perf_counter() - start, 4), **found._asdict()}


def drawn_region(tensors: list[Tensor], density: float, seed: int) -> Region:
    generator = np.random.default_rng(seed)
    metadata = RegionMetadata(
        method="drawn",
        layout=layout_of(tensors, [one.name for one in tensors]),
        model=ModelIdentity(source="drawn", name="drawn", fingerprints={one.name: "0" * 64 for one in tensors}),
        seed=seed,
    )
    numel = TENSOR[0] * TENSOR[1]
    draws = (np.unique(generator.integers(0, numel, round(numel * density), np.int32)) for _ in tensors)
    return Region({one.name: torch.from_numpy(found) for one, found in zip(tensors, draws, strict=True)}, metadata)


def matrix(weights: int, regions: int, density: float) -> dict[str, Any]:
    """Every pair of many regions, each in its file."""
    count = max(1, weights // (TENSOR[0] * TENSOR[1]))
    tensors = [Tensor(f"layers.{number}.up", number, "up", TENSOR) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.safetensors" for number in range(regions)]
        for number, path in enumerate(paths):
            drawn_region(tensors, density, number).save(path)
        start = time.perf_counter()
        opened = [RegionFile.open(path) for path in paths]
        opening = time.perf_counter() - start
        start = time.perf_counter()
        found = overlaps(opened)
        seconds = time.perf_counter() - start
    row = found.pairs[0]
    return {
        "weights": count * TENSOR[0] * TENSOR[1],
        "regions": regions,
        "pairs": len(found.pairs),
        "open_and_check_seconds": round(opening, 2),
        "seconds": round(seconds, 2),
        "peak_gb": gigabytes(),
        "iou": round(row.iou, 5),
        "chance": round(row.chance, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--regions", type=int, default=40)
    parser.add_argument("--density", type=float, default=0.01)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"matrix": []}
    for part in (0.25, 0.5, 1.0):  # before the packed pair, which raises the peak memory of the process
        weights = int(MATRIX_WEIGHTS * arguments.scale * part)
        results["matrix"].append(matrix(weights, arguments.regions, arguments.density))
        print(results["matrix"][-1], flush=True)
    results["permutation"] = test_of_a_pair(1000)
    print(results["permutation"], flush=True)
    results["packed_pair"] = packed_pair(int(PAIR_WEIGHTS * arguments.scale))
    print(results["packed_pair"], flush=True)
    write_result("overlap", settings=vars(arguments), results=results)


if __name__ == "__main__":
    main()
