"""A whole study: the cells of a grid, the comparisons between them, and the tables."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from ballast.regions.metadata import TOOL
from ballast.runs import versions, write_json
from ballast.study.assembly import Assembly, summarised
from ballast.study.cells import CellStore
from ballast.study.comparisons import Comparison, compare
from ballast.study.engines.base import Engine
from ballast.study.engines.local import LocalEngine
from ballast.study.grid import StudyGrid
from ballast.study.grouping import Grouping
from ballast.study.hygiene import safety_sets, utility_sets
from ballast.study.plan import Drawn, Planner
from ballast.study.schedule import Schedule
from ballast.study.tables import CellRow, KWayRow, PairRow, RefinementRow, write_table
from ballast.study.work import identify

RESULT = "study.json"
NAMED = ("use", "model", "method", "set", "seed", "part", "size", "refinement", "error", "hash")  # of a failed cell


def study(grid: StudyGrid | Path | str, *, out: Path | str, engine: Engine | None = None) -> dict[str, Any]:
    """Locate the regions of every cell of a grid and compare them; see `docs/study.md`.

    The same call continues where an earlier one stopped. A changed grid makes new cells and keeps those that still
    apply. Cells that failed are written down, do not stop the others, and are tried again by the next call.

    Args:
        grid: The grid, or its TOML file.
        out: Folder for cells, comparisons, tables and `study.json`.
        engine: Who does the work; one process on this machine if none is given. With processes, a script needs
            `if __name__ == "__main__":`.

    Returns:
        What `study.json` holds.

    Raises:
        UsageError: The grid cannot be used.
        PromptError: A set is missing, or too small without near duplicates.
        RunError: The folder cannot be written.
    """
    chosen = grid if isinstance(grid, StudyGrid) else StudyGrid.load(grid)
    safety, utility = safety_sets(chosen), utility_sets(chosen)
    drawn = Drawn(
        {seed: safety.drawn(chosen.prompts, seed) for seed in chosen.seeds},
        {seed: utility.drawn(chosen.prompts, seed) for seed in chosen.seeds},
    )
    run = _Run(chosen, Path(out), drawn)
    write_json(
        run.folder / "near_duplicates.json",
        {
            use: [
                {"first_set": one.first_set, "second_set": one.second_set, **one.pair._asdict(), "dropped": one.dropped}
                for one in sets.found
            ]
            for use, sets in {"safety": safety, "utility": utility}.items()
        },
    )
    with engine or LocalEngine() as running:
        run.work(running)
    result = run.result() | {"sets": {use: sets.record() for use, sets in (("safety", safety), ("utility", utility))}}
    write_json(run.folder / RESULT, result)
    plain: dict[str, Any] = json.loads(json.dumps(result))  # lists for tuples, as in the file
    return plain


@dataclass
class _Run:
    """A study under way.

    Attributes:
        grid: What is asked for.
        folder: Where everything goes.
        drawn: The prompts.
        identities: Of the models that could be opened.
        unopened: Why the others could not.
        planners: Of the models that could be opened, in the order of the grid.
        comparisons: Those whose result is there.
        not_compared: Why others are not.
    """

    grid: StudyGrid
    folder: Path
    drawn: Drawn
    identities: dict[str, dict[str, Any]] = field(default_factory=dict)
    unopened: dict[str, str] = field(default_factory=dict)
    planners: dict[str, Planner] = field(default_factory=dict)
    comparisons: list[tuple[Comparison, Mapping[str, Any]]] = field(default_factory=list)
    not_compared: list[dict[str, Any]] = field(default_factory=list)

    def work(self, engine: Engine) -> None:
        """Make what is missing of all cells, then compare."""
        schedule = Schedule(engine, CellStore(self.folder / "cells"))
        for name in _bases_first(self.grid):  # so that a worker opens each model once
            if self._is_opened(name, engine):
                planner = Planner(self.grid, self.drawn, schedule.store, name, self.identities)
                self.planners[name] = planner
                schedule.locate(planner.utility(), f"{name}: utility")
                schedule.derive(planner.unions(), f"{name}: utility together")
                schedule.locate(planner.safety(), f"{name}: safety")
                schedule.derive(planner.subtracts(), f"{name}: without utility")
        self._compare(schedule)

    def result(self) -> dict[str, Any]:
        """Write the tables; what `study.json` holds of cells, comparisons and tables."""
        cells = [cell for planner in self._planned() for cell in planner.cells()]
        store = CellStore(self.folder / "cells")
        records = {cell.hash: record for cell in cells if (record := store.record(cell.hash))}
        assembly = Assembly(self.grid, self.drawn, records, self.comparisons)
        tables: dict[str, tuple[type[Any], list[Any]]] = {
            "cells": (CellRow, assembly.cells(cells)),
            "pairs": (PairRow, assembly.pairs()),
            "kway": (KWayRow, assembly.kway()),
            "refinement": (RefinementRow, assembly.refinements()),
        }
        for name, (kind, rows) in tables.items():
            write_table(self.folder / "tables", name, kind, rows)
        states = Counter(row.state for row in tables["cells"][1])
        failures = [row._asdict() for row in tables["cells"][1] if row.state != "done"]
        failed = [{key: row[key] for key in NAMED} for row in failures]
        return {
            "state": "failed" if failed or self.unopened or self.not_compared else "done",
            "tool": TOOL,
            "versions": versions(),
            "grid": self.grid.model_dump(mode="json"),
            "models": {name: self.identities.get(name) for name in self.grid.models},
            "cells": {"planned": len(cells), "files": len(records), **states},
            "failures": {"models": self.unopened, "cells": failed, "comparisons": self.not_compared},
            "left_out": [one for planner in self._planned() for one in planner.left_out()],
            "tables": {name: len(rows) for name, (_, rows) in tables.items()},
            "summary": summarised(tables["pairs"][1]),
        }

    def _planned(self) -> list[Planner]:
        """In the order of the grid."""
        return [self.planners[name] for name in self.grid.models if name in self.planners]

    def _is_opened(self, name: str, engine: Engine) -> bool:
        """Whether a model could be opened; what it is is then known."""
        (done,) = engine.run(identify, [self.grid.models[name]])
        if done.failure is not None:
            self.unopened[name] = done.failure.sentence
        elif done.result is not None:
            self.identities[name] = done.result
        return name in self.identities

    def _compare(self, schedule: Schedule) -> None:
        wanted: list[Comparison] = []
        for planner in self._planned():
            cells = list(planner.cells())
            hashes = {cell.place: cell.hash for cell in cells}
            wanted += Grouping(planner, hashes, schedule.done(cells), self.folder / "comparisons").comparisons()
        missing = [one for one in wanted if one.result() is None]
        for done in schedule.tracked(compare, missing, "compare"):
            if done.failure is not None:
                places = [dataclasses.asdict(place) for place in done.job.places]
                self.not_compared.append({"places": places, "error": done.failure.sentence})
        self.comparisons = [(one, result) for one in wanted if (result := one.result()) is not None]


def _bases_first(grid: StudyGrid) -> list[str]:
    """The models of a grid; one that others are compared with comes before these."""
    graph = {name: [model.base] if model.base else [] for name, model in grid.models.items()}
    return list(TopologicalSorter(graph).static_order())
