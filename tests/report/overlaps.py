"""Made-up overlaps: regions with a common core, compared by the code that compares real ones."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ballast.locate import overlap_report
from ballast.regions import PromptSource, Region
from ballast.regions.ceiling import Halves, ceiling_of, corrected_overlap
from ballast.runs import read_json, write_json
from tests.regions.worlds import SmallPart, region
from tests.worlds import prompt_set

LAYERS = 6
ROLES: Mapping[str, tuple[int, int]] = {"query": (20, 30), "value": (10, 30), "gate": (40, 30), "down": (30, 40)}
PARTS = tuple(
    SmallPart(f"layers.{layer}.{role}", layer, role, shape) for layer in range(LAYERS) for role, shape in ROLES.items()
)
METHODS = ("wanda", "snip", "esi", "magnitude")
TOPICS = ("crime", "<b>fraud</b> & </script>", "weapons")
SIZES = (4, 8, 16)
SPLITS = 2


def make_overlap(folder: Path, count: int = 3, *, ceiling: bool = True, sizes: Sequence[int] = SIZES) -> Path:
    """Write what `ballast overlap` writes for regions of which neighbours are more alike.

    Args:
        folder: Of the run.
        count: How many regions.
        ceiling: Whether halves were located again.
        sizes: Of the disjoint samples, with a ceiling.
    """
    regions, sets = {}, []
    for number in range(count):
        topic = TOPICS[number % len(TOPICS)]
        prompts = prompt_set(topic, [f"Fixture {topic} {word}?" for word in "abcdefgh"] + ["Is this a fixture?"])
        sets.append(prompts)
        source = PromptSource(name=topic, hash=prompts.hash, n=len(prompts))
        name = f"runs/{METHODS[number % len(METHODS)]}-{number + 1}/region.safetensors"
        regions[name] = _described(noisy(number, seed=number), METHODS[number % len(METHODS)], source)
    overlap_report(regions, prompts=sets, out=folder)
    if ceiling:
        _add_ceiling(folder, list(regions.values()), sizes)
    return folder


def make_windows(folder: Path) -> Path:
    """Three regions of consecutive layers: 1 to 3, 2 to 4, and 0."""
    regions = {}
    for name, layers in (("a", (1, 2, 3)), ("b", (2, 3, 4)), ("c", (0,))):
        chosen = {part.name: range(part.numel) for part in PARTS if part.layer in layers}
        found = region(chosen, PARTS)
        units = {"layer": tuple((layer, -1, 0) for layer in layers)}
        changes = {"granularity": "layer", "selected_units": units, "scored_units": {"layer": LAYERS}}
        regions[name] = Region(found.indices, found.metadata.model_copy(update=changes))
    overlap_report(regions, out=folder)
    return folder


def noisy(place: int, seed: int, share: float = 0.6) -> Region:
    """A region of which `share` are weights that all have, and the rest drawn near its own place."""
    chosen: dict[str, set[int]] = {}
    for part in PARTS:
        liking = math.exp(-(((part.layer or 0) - place % LAYERS) ** 2) / 8)
        n = 6 + round(0.12 * part.numel * liking)
        common = random.Random(part.name).sample(range(part.numel), round(share * n))
        own = random.Random(f"{part.name} {seed}").sample(range(part.numel), n - len(common))
        chosen[part.name] = {*common, *own}
    return region(chosen, PARTS)


def _described(found: Region, method: str, prompts: PromptSource) -> Region:
    return Region(found.indices, found.metadata.model_copy(update={"method": method, "prompts": prompts}))


def _add_ceiling(folder: Path, regions: Sequence[Region], sizes: Sequence[int]) -> None:
    """What `overlap_report` adds with a model, of halves that are noisy copies."""
    report = read_json(folder / "overlap.json")
    halves = [
        [Halves(noisy(place, 100 * place + 2 * split), noisy(place, 100 * place + 2 * split + 1)) for split in range(2)]
        for place in range(len(regions))
    ]
    report["ceilings"] = [ceiling_of(one, 4)._asdict() for one in halves]
    report["convergence"] = [[_sampled(place, size)._asdict() for size in sizes] for place in range(len(regions))]
    for row in report["pairs"]:
        one, other = halves[row["first"]], halves[row["second"]]
        row["corrected"] = corrected_overlap(one, other, list(zip(one, other, strict=True)))._asdict()
    if not sizes:
        del report["convergence"]
    write_json(folder / "overlap.json", report)


def _sampled(place: int, size: int) -> Any:
    """Regions that are the more alike the more prompts they have."""
    share = 1 - 1 / size
    pairs = [Halves(noisy(place, 1000 + split, share), noisy(place, 2000 + split, share)) for split in range(SPLITS)]
    return ceiling_of(pairs, size)
