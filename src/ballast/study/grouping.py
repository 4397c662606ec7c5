"""Which regions of a study are compared: those that differ in their prompt set, in their seed, or in their method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ballast.study.cells import WHOLE, CellRecord, Place
from ballast.study.comparisons import Comparison, Family, Kind
from ballast.study.plan import Planner


@dataclass(frozen=True)
class Grouping:
    """The comparisons of one model.

    Attributes:
        planner: Its cells.
        hashes: Of all its cells.
        records: What was written of each cell that is done, by its hash.
        folder: For the results.
    """

    planner: Planner
    hashes: Mapping[Place, str]
    records: Mapping[str, CellRecord]
    folder: Path

    def comparisons(self) -> Iterator[Comparison]:
        """Every group of at least two regions that are there."""
        groups: dict[tuple[Kind, object], list[Place]] = defaultdict(list)
        for place, name in self.hashes.items():
            if (place.use, place.part, place.refinement) == ("safety", WHOLE, "none"):
                groups["sets", (place.method, place.fraction, place.seed)].append(place)
                groups["seeds", (place.method, place.fraction, place.set)].append(place)
                if name in self.records:  # regions that select from other parameters cannot be compared
                    groups["methods", (place.set, place.seed, self.records[name].layout)].append(place)
        for (kind, _), places in groups.items():
            if kind == "methods" and len({place.method for place in places}) < 2:
                continue
            families: dict[str, Family] = {
                refinement: self._family(kind, places, refinement)
                for refinement in (self.planner.grid.refinements(places[0].method) if kind == "sets" else ("none",))
            }
            kept = {refinement: family for refinement, family in families.items() if len(family.regions) > 1}
            if "none" in kept:
                yield Comparison(self.folder, self.planner.store, kind, tuple(places), kept)

    def _family(self, kind: Kind, places: list[Place], refinement: str) -> Family:
        """The regions that are there, and of those whose halves are there these too."""
        regions = {}
        for number, place in enumerate(places):
            if (name := self._hash(place, refinement, WHOLE)) in self.records:
                regions[number] = name
        splits = []
        # draws of one set share prompts, so that their halves are not disjoint
        for split in range(self.planner.grid.splits if kind != "seeds" else 0):
            halves = {}
            for number in regions:
                first, second = (self._hash(places[number], refinement, f"{split}{half}") for half in "ab")
                if first in self.records and second in self.records:
                    halves[number] = (first, second)
            splits.append(halves)
        outside = None
        if refinement != "none":
            one = places[0]
            outside = self.planner.union(one.method, one.seed, self.planner.share(one.method, one.fraction)).hash
        return Family(regions, tuple(splits), outside)

    def _hash(self, place: Place, refinement: str, part: str) -> str:
        return self.hashes[replace(place, refinement=refinement, part=part)]
