"""Regions of a study compared: pairs, k at a time, and before and after refinement; from the files alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ballast.errors import RunError
from ballast.regions import RegionFile, overlaps
from ballast.regions.ceiling import CorrectedOverlap
from ballast.regions.kway import kway_overlaps
from ballast.regions.many_halves import corrected_overlaps
from ballast.regions.metadata import TOOL, canonical_json
from ballast.regions.overlap import DRAWS, Overlaps, PairOverlap
from ballast.runs import read_json, write_json
from ballast.study.cells import CellStore, Place
from ballast.study.decomposition import decomposed

Kind = Literal["sets", "seeds", "methods"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Regions of one refinement that are compared with each other.

    Attributes:
        regions: Hashes of the cells, by their numbers in the comparison.
        halves: Per split the hashes of both halves, by the same numbers.
        outside: Hash of the utility region outside of which all of them lie; None without.
    """

    regions: Mapping[int, str]
    halves: tuple[Mapping[int, tuple[str, str]], ...] = ()
    outside: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Regions that differ in one thing.

    Attributes:
        folder: Where results are kept.
        store: Where the cells are.
        kind: What they differ in.
        places: Where they stand; the tables need it, and it decides nothing.
        families: By refinement, `none` first.
    """

    folder: Path
    store: CellStore
    kind: Kind
    places: tuple[Place, ...]
    families: Mapping[str, Family]

    @cached_property
    def path(self) -> Path:
        """The file of the result, named by everything that decides it."""
        families = {
            refinement: [sorted(one.regions.items()), [sorted(split.items()) for split in one.halves], one.outside]
            for refinement, one in self.families.items()
        }
        key = canonical_json({"tool": TOOL, "kind": self.kind, "draws": DRAWS, "families": families})
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def result(self) -> dict[str, Any] | None:
        """What `compare` found, if it did."""
        try:
            found: dict[str, Any] = read_json(self.path)
        except RunError:  # not there, or torn: compared again
            return None
        return found


def compare(job: Comparison) -> None:
    """Compare the regions of every family and write what is found.

    Raises:
        RegionError: A file is damaged, or regions do not belong together.
    """
    found: dict[str, Overlaps] = {}
    result: dict[str, Any] = {}
    for refinement, family in job.families.items():
        names = list(family.regions)
        regions = [RegionFile.open(job.store.region(name)) for name in family.regions.values()]
        outside = RegionFile.open(job.store.region(family.outside)) if family.outside else None
        found[refinement] = overlaps(regions, outside=outside)
        halves = _corrected(job.store, family, names, outside)
        pairs = [
            _pair_row(names, pair, halves.get((pair.first, pair.second)), everywhere=outside is None)
            for pair in found[refinement].pairs
        ]
        result[refinement] = {
            "pairs": pairs,
            "kway": [row._asdict() for row in kway_overlaps(regions, outside=outside)] if job.kind == "sets" else [],
        }
    before = found["none"], list(job.families["none"].regions)
    for refinement in found:
        if refinement != "none":
            after = found[refinement], list(job.families[refinement].regions)
            result[refinement]["decomposition"] = decomposed(*before, *after, thinned=refinement == "subtract")
    write_json(job.path, result)


def _corrected(
    store: CellStore, family: Family, names: list[int], outside: RegionFile | None
) -> dict[tuple[int, int], CorrectedOverlap]:
    """Overlaps with the noise of locating taken out, of the pairs whose regions have halves."""
    if not family.halves:
        return {}
    kept = [name for name in names if all(name in split for split in family.halves)]
    if len(kept) < 2:
        return {}
    splits = [
        [
            (RegionFile.open(store.region(first)), RegionFile.open(store.region(second)))
            for first, second in (split[name] for name in kept)
        ]
        for split in family.halves
    ]
    places = [names.index(name) for name in kept]
    found = corrected_overlaps(splits, outside=outside)
    return {(places[one], places[other]): numbers for (one, other), numbers in found.items()}


def _pair_row(names: list[int], pair: PairOverlap, halves: CorrectedOverlap | None, *, everywhere: bool) -> Row:
    """One pair in flat names, as the tables have them.

    Rows, columns and windows are counted over all places, so these chance levels hold only where no place is barred.
    """
    row: Row = {
        "first": names[pair.first],
        "second": names[pair.second],
        "intersection": pair.intersection,
        "union": pair.union,
        "iou": pair.iou,
        "macro_iou": pair.macro_iou,
        "matrices": pair.matrices,
        "matrices_left_out": pair.matrices_left_out,
        "size_cap": pair.size_cap,
        "contained_first": pair.contained[0],
        "contained_second": pair.contained[1],
        "global_chance": pair.global_chance,
        "chance": pair.chance,
        "margin_chance": pair.margin_chance if everywhere else None,
        "excess": pair.excess,
        "p": pair.p.p,
        "draws": pair.p.draws,
    }
    if pair.units is not None:
        window = pair.units.window if everywhere else None
        row |= {
            "unit_intersection": pair.units.intersection,
            "unit_union": pair.units.union,
            "unit_iou": pair.units.iou,
            "unit_chance": pair.units.chance,
            "unit_size_cap": pair.units.size_cap,
            "unit_p": pair.units.p.p,
            "window_chance": window.chance if window else None,
            "window_p": window.p if window else None,
        }
    if halves is not None:
        row |= {
            "half_iou": halves.iou,
            "half_chance": halves.chance,
            "ceiling": halves.ceiling,
            "ceiling_first": halves.ceilings[0],
            "ceiling_second": halves.ceilings[1],
            "corrected": halves.corrected,
            "splits": halves.splits,
        }
    return row
