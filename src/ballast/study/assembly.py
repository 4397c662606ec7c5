"""The rows of the tables, from the records of cells and the results of comparisons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from ballast.prompts import PromptSet
from ballast.prompts.overlap import near_duplicates
from ballast.study.cells import Cell, CellRecord, Place
from ballast.study.comparisons import Comparison
from ballast.study.grid import StudyGrid
from ballast.study.hygiene import SIMILARITY
from ballast.study.plan import Drawn
from ballast.study.tables import CellRow, KWayRow, PairRow, RefinementRow


@dataclass(frozen=True)
class Assembly:
    """What all rows are made of.

    Attributes:
        grid: The study.
        drawn: Its prompts.
        records: Of all cells that were tried, by hash.
        comparisons: With their results.
    """

    grid: StudyGrid
    drawn: Drawn
    records: Mapping[str, CellRecord]
    comparisons: Sequence[tuple[Comparison, Mapping[str, Any]]]
    _alike: dict[tuple[str, str], int] = field(default_factory=dict)  # near duplicates, by the hashes of the prompts

    def cells(self, cells: Sequence[Cell]) -> list[CellRow]:
        """One row per place in the grid."""
        return [self._cell(cell) for cell in cells]

    def pairs(self) -> list[PairRow]:
        """One row per pair of regions that differ in their set, in their seed or in their method."""
        found = [
            (comparison, refinement, row)
            for comparison, result in self.comparisons
            for refinement, part in result.items()
            for row in part["pairs"]
            if comparison.kind != "methods" or _differ(comparison, row)
        ]
        adjusted = false_discovery_control([row["p"] for _, _, row in found]).tolist() if found else []
        return [
            self._pair(comparison, refinement, {**row, "adjusted_p": p})
            for (comparison, refinement, row), p in zip(found, adjusted, strict=True)
        ]

    def kway(self) -> list[KWayRow]:
        """One row per number of sets that are compared at once."""
        return [
            KWayRow(**self._of_sets(comparison, refinement), sets=len(comparison.families[refinement].regions), **row)
            for comparison, refinement, row in self._rows("kway")
        ]

    def refinements(self) -> list[RefinementRow]:
        """One row per pair of sets and refinement."""
        corrected = {
            (id(comparison), refinement, row["first"], row["second"]): row.get("corrected")
            for comparison, refinement, row in self._rows("pairs")
        }
        return [
            RefinementRow(
                **self._of_sets(comparison, refinement),
                set_first=comparison.places[row["first"]].set,
                set_second=comparison.places[row["second"]].set,
                corrected=corrected[id(comparison), "none", row["first"], row["second"]],
                refined_corrected=corrected[id(comparison), refinement, row["first"], row["second"]],
                **{column: value for column, value in row.items() if column not in ("first", "second")},
            )
            for comparison, refinement, row in self._rows("decomposition")
        ]

    def _rows(self, part: str) -> Iterator[tuple[Comparison, str, Mapping[str, Any]]]:
        """The rows of one part of the results of comparisons of sets."""
        for comparison, result in self.comparisons:
            for refinement, found in result.items():
                if comparison.kind == "sets":
                    yield from ((comparison, refinement, row) for row in found.get(part, ()))

    def _of_sets(self, comparison: Comparison, refinement: str) -> dict[str, Any]:
        place = comparison.places[0]
        return {
            "model": place.model,
            "family": self.grid.models[place.model].family,
            "method": place.method,
            "size": place.fraction,
            "seed": place.seed,
            "refinement": refinement,
        }

    def _cell(self, cell: Cell) -> CellRow:
        place, record = cell.place, self.records.get(cell.hash)
        coverage = record.coverage if record else None
        return CellRow(
            use=place.use,
            model=place.model,
            family=self.grid.models[place.model].family,
            method=place.method,
            set=place.set,
            seed=place.seed,
            part=place.part,
            size=place.fraction,
            refinement=place.refinement,
            prompts=self.grid.prompts if place.part == "whole" else self.grid.prompts // 2,
            state=record.state if record else "missing",
            seconds=record.seconds if record else None,
            located_together=len(record.together) if record and record.together else None,
            granularity=record.granularity if record else None,
            weights=record.weights if record else None,
            eligible=record.eligible if record else None,
            units=record.units if record else None,
            scored_parameters=sum(row.parameters for row in coverage.scored) if coverage else None,
            skipped_parameters=sum(row.parameters for row in coverage.skipped) if coverage else None,
            error=record.error if record else None,
            hash=cell.hash,
        )

    def _pair(self, comparison: Comparison, refinement: str, row: Mapping[str, Any]) -> PairRow:
        sides = {side: comparison.places[row[side]] for side in ("first", "second")}
        names: dict[str, Any] = {}
        for side, place in sides.items():
            record = self.records[comparison.families[refinement].regions[row[side]]]
            names |= {
                f"method_{side}": place.method,
                f"size_{side}": place.fraction,
                f"set_{side}": place.set,
                f"seed_{side}": place.seed,
                f"granularity_{side}": record.granularity,
                f"weights_{side}": record.weights,
            }
        numbers = {column: value for column, value in row.items() if column not in sides}
        return PairRow(
            comparison=comparison.kind,
            model=sides["first"].model,
            family=self.grid.models[sides["first"].model].family,
            refinement=refinement,
            prompts=self.grid.prompts,
            near_duplicates=self._near_duplicates(*(self._prompts(place) for place in sides.values())),
            half_prompts=self.grid.prompts // 2 if "half_iou" in row else None,
            **names,
            **numbers,
        )

    def _prompts(self, place: Place) -> PromptSet:
        return self.drawn.safety[place.seed][place.set]

    def _near_duplicates(self, one: PromptSet, other: PromptSet) -> int:
        """Rows of the one that nearly equal a row of the other; all of them if both are the same rows."""
        key = one.hash, other.hash
        if key not in self._alike:
            self._alike[key] = len({pair.first for pair in near_duplicates(one, other, similarity=SIMILARITY)})
        return self._alike[key]


def _differ(comparison: Comparison, row: Mapping[str, Any]) -> bool:
    """Whether the methods differ, and not only the sizes."""
    first, second = (comparison.places[int(row[side])] for side in ("first", "second"))
    return first.method != second.method


def summarised(rows: Sequence[PairRow]) -> list[dict[str, Any]]:
    """Means over the pairs of sets of each model, method, size and refinement."""
    groups: dict[tuple[Any, ...], list[PairRow]] = defaultdict(list)
    for row in rows:
        if row.comparison == "sets":
            groups[row.model, row.family, row.method_first, row.size_first, row.refinement].append(row)
    return [
        {
            **dict(zip(("model", "family", "method", "size", "refinement"), names, strict=True)),
            "granularity": members[0].granularity_first,
            "pairs": len(members),
            "lowest_iou": min(row.iou for row in members),
            "highest_iou": max(row.iou for row in members),
            **{
                column: _mean([getattr(row, column) for row in members])
                for column in (
                    "iou",
                    "macro_iou",
                    "chance",
                    "margin_chance",
                    "global_chance",
                    "size_cap",
                    "half_iou",
                    "half_chance",
                    "ceiling",
                    "corrected",
                    "unit_iou",
                    "unit_chance",
                )
            },
            "identifiable": sum(row.corrected is not None for row in members),
            "significant": sum(row.adjusted_p <= 0.05 for row in members),
        }
        for names, members in groups.items()
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
