"""Regions compared with all that is needed to read the numbers: chance, ceiling, shared prompts and agreement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import false_discovery_control

from ballast.errors import PromptError, RegionError, UsageError
from ballast.locate.halves import SPLITS, resample_halves, split_prompts
from ballast.locate.relocate import Recipe, remembered_prompts
from ballast.models import LanguageModel
from ballast.progress import track
from ballast.prompts import PromptSet
from ballast.prompts.overlap import near_duplicates
from ballast.regions import Region, RegionFile
from ballast.regions.ceiling import Halves, ceiling_of, corrected_overlap
from ballast.regions.consensus import agreement
from ballast.regions.layout import cells_of
from ballast.regions.overlap import DRAWS, AllOverlap, PairOverlap, overlaps
from ballast.regions.region import require_weights
from ballast.runs import RunDirectory, write_json

SIMILARITY = 0.8
Compared = Region | RegionFile


def overlap_report(
    regions: Mapping[str, Compared],
    *,
    prompts: Sequence[PromptSet] = (),
    ceiling: LanguageModel | None = None,
    splits: int = SPLITS,
    resamples: int = 0,
    sizes: Sequence[int] = (),
    draws: int = DRAWS,
    seed: int = 0,
    other_weights: bool = False,
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Compare regions in pairs and all at once, beside what chance and noise allow.

    Args:
        regions: At least two, by names for the reader.
        prompts: The sets that they were located on, where a region's record alone does not lead to them.
        ceiling: The model that they were located on; each is located again on halves of its prompts.
        splits: Random halvings of each set.
        resamples: Halvings with prompts drawn again, for the interval of the corrected overlap; each costs as much as a
            split.
        sizes: Also locate each region again on disjoint samples of 8, 16, 32 ... of its prompts; `splits` pairs of
            samples each.
        draws: Shuffles of the permutation test.
        seed: Of halvings, resamples and shuffles.
        other_weights: Also compare regions located on different weights of one architecture.
        out: Folder for `overlap.json` and, so that an interrupted call continues, the regions of the halves.

    Returns:
        What `overlap.json` holds, see `docs/overlap.md`.

    Raises:
        UsageError: Fewer than two regions, halves are asked for without a folder, sizes without a ceiling, or a set has
            fewer prompts than they need.
        RegionError: Regions that cannot be compared, or that cannot be located again.
        PromptError: The ceiling is asked for and the prompts of a region are not at hand.
    """
    if ceiling is not None and out is None:
        raise UsageError("A ceiling takes many calls of locate; give a folder with --out where they are kept.")
    if resamples == 1:
        raise UsageError("One resample gives no interval; ask for at least 2, or for none.")
    if sizes and ceiling is None:
        raise UsageError("Samples of growing size are located again on the model; name it with --ceiling.")
    compared = list(regions.values())
    found = _prompts(compared, prompts, required=ceiling is not None)
    pairs_of_prompts = _shared_prompts(found)
    run = None
    if out is not None:
        settings: dict[str, Any] = {"draws": draws, "seed": seed, "other_weights": other_weights}
        if ceiling is not None:
            settings |= {"splits": splits, "resamples": resamples} | ({"sizes": list(sizes)} if sizes else {})
        inputs = {"regions": {name: region.region_id for name, region in regions.items()}}
        run = RunDirectory.open(Path(out), "overlap", settings, inputs)
    pairs, of_all, agreed = _compared(compared, draws, seed, other_weights)
    adjusted = false_discovery_control([pair.p.p for pair in pairs]).tolist()
    rows = [
        {**pair.as_json(), "adjusted_p": p, "prompts": shared}
        for pair, p, shared in zip(pairs, adjusted, pairs_of_prompts, strict=True)
    ]
    report: dict[str, Any] = {
        "regions": [_described(name, region) for name, region in regions.items()],
        "pairs": rows,
        "all": of_all._asdict(),
        "agreement": agreed,
    }
    if ceiling is not None and run is not None:
        sets = [one for one in found if one]
        half = halves_size(sets)
        pairs_of = [
            [
                *split_prompts(one, half, splits, seed),
                *resample_halves(one, half, resamples, seed),
                *(pair for size in sizes for pair in split_prompts(one, size, splits, seed)),
            ]
            for one in sets
        ]
        again = located_again(ceiling, compared, pairs_of, run)
        report["ceilings"] = [ceiling_of(one[:splits], half)._asdict() for one in again]
        for row in rows:
            row["corrected"] = _corrected(again[row["first"]], again[row["second"]], splits, resamples)
        if sizes:
            report["convergence"] = [_convergence(one[splits + resamples :], sizes, splits) for one in again]
    plain: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))  # lists for tuples, as in the file
    if run is not None:
        write_json(run.path / "overlap.json", plain)
        run.finish()
    return plain


def halves_size(sets: Sequence[PromptSet]) -> int:
    """Prompts on each side: half of the smallest set, the same for all."""
    return min(map(len, sets)) // 2


def located_again(
    lm: LanguageModel,
    regions: Sequence[Compared],
    samples: Sequence[Sequence[tuple[PromptSet, PromptSet]]],
    run: RunDirectory,
) -> list[list[Halves]]:
    """Each region located again on both sides of all its pairs of samples; finished ones are read from the folder.

    Raises:
        RegionError: A region belongs to other weights, or cannot be located again.
    """
    shapes = {name: tuple(value.shape) for name, value in lm.model.named_parameters()}
    fingerprints = lm.fingerprints()
    for region in regions:
        require_weights(region.indices, region.metadata, fingerprints, shapes)
    recipes = [Recipe.of(region.metadata) for region in regions]
    jobs = [
        (number, place, side, part)
        for number, pairs in enumerate(samples)
        for place, pair in enumerate(pairs)
        for side, part in enumerate(pair)
    ]

    def path(number: int, place: int, side: int) -> Path:
        return run.path / "halves" / f"{number}-{place}-{side}.safetensors"

    left = [job for job in jobs if not run.is_done("half {}-{}-{}".format(*job[:3]))]
    for number, place, side, part in track(left, "locate on halves", len(jobs) - len(left)):
        with run.step(f"half {number}-{place}-{side}"):
            recipes[number].located(lm, part).save(path(number, place, side))
    return [
        [Halves(*(Region.load(path(number, place, side)) for side in (0, 1))) for place in range(len(pairs))]
        for number, pairs in enumerate(samples)
    ]


def _described(name: str, region: Compared) -> dict[str, Any]:
    """A region as a reader of the report needs it."""
    metadata = region.metadata
    cells = cells_of(region.indices, metadata.layout)
    return {
        "name": name,
        "region_id": region.region_id,
        "model": metadata.model.name,
        "method": metadata.method,
        "granularity": metadata.granularity,
        "prompts": metadata.prompts.model_dump() if metadata.prompts else None,
        "weights": sum(cell["selected"] for cell in cells),
        "eligible": metadata.eligible,
        "cells": cells,
    }


def _corrected(one: Sequence[Halves], other: Sequence[Halves], splits: int, resamples: int) -> dict[str, Any]:
    """Two regions at half the prompts; the splits of each come first, then its resamples."""
    drawn = zip(one[splits : splits + resamples], other[splits : splits + resamples], strict=True)
    return corrected_overlap(one[:splits], other[:splits], list(drawn))._asdict()


def _convergence(pairs: Sequence[Halves], sizes: Sequence[int], splits: int) -> list[dict[str, Any]]:
    """How alike the regions of disjoint samples are, by their size; `splits` pairs per size, in their order."""
    return [
        ceiling_of(pairs[place * splits : (place + 1) * splits], size)._asdict() for place, size in enumerate(sizes)
    ]


def _compared(
    regions: Sequence[Compared], draws: int, seed: int, other_weights: bool
) -> tuple[list[PairOverlap], AllOverlap, list[dict[str, Any]] | None]:
    """The overlaps, and the agreement where all belong to the same weights."""
    found = overlaps(regions, draws=draws, seed=seed, other_weights=other_weights)
    if other_weights:
        return found.pairs, found.all, None
    rows = agreement(regions, found.selected, found.sizes, seed=seed)
    return found.pairs, found.all, [row._asdict() for row in rows]


def _prompts(regions: Sequence[Compared], given: Sequence[PromptSet], *, required: bool) -> list[PromptSet | None]:
    """The prompts of each region, None where they are not at hand."""
    found: list[PromptSet | None] = []
    for region in regions:
        source = region.metadata.prompts
        if source is None:
            if required:
                raise RegionError(
                    f"A region without prompts ({region.metadata.method}) has no halves; compare without a ceiling."
                )
            found.append(None)
            continue
        own = [one for one in given if one.hash == source.hash] or [one for one in given if one.name == source.name]
        try:
            found.append(remembered_prompts(source, region.metadata.seed, own[0] if own else None))
        except PromptError as error:
            if required or own:
                raise PromptError(f"{error} (--prompts names the set of a region.)") from error
            found.append(None)
    return found


def _shared_prompts(sets: Sequence[PromptSet | None]) -> list[dict[str, Any] | None]:
    """How many prompts of the first have a near duplicate in the second, of every pair; None where a set is missing."""
    rows: list[dict[str, Any] | None] = []
    for place, one in enumerate(sets):
        for other in sets[place + 1 :]:
            if one is None or other is None:
                rows.append(None)
            elif one.hash == other.hash:
                rows.append({"same_set": True, "near_duplicates": len(one), "of": [len(one), len(other)], "list": []})
            else:
                found = near_duplicates(one, other, similarity=SIMILARITY)
                rows.append(
                    {
                        "same_set": False,
                        "near_duplicates": len({pair.first for pair in found}),
                        "of": [len(one), len(other)],
                        "list": [pair._asdict() for pair in found],
                    }
                )
    return rows
