"""The cells of a grid on one model, and the jobs that make them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ballast.locate import Method
from ballast.locate.halves import split_prompts
from ballast.prompts import PromptSet
from ballast.regions import exact_fraction
from ballast.regions.metadata import TOOL
from ballast.study.cells import WHOLE, Cell, CellStore, Place, Use
from ballast.study.grid import MethodEntry, ModelEntry, StudyGrid
from ballast.study.named_files import named_files
from ballast.study.work import LocateJob, Scoring

UTILITY_FRACTION = 0.04  # as `ballast locate` takes it
NAMES = ("source", "name", "revision")  # of a model; its weights decide


class Drawn(NamedTuple):
    """The rows that a study locates with, by seed and name of the set."""

    safety: Mapping[int, Mapping[str, PromptSet]]
    utility: Mapping[int, Mapping[str, PromptSet]]


@dataclass(frozen=True)
class Planner:
    """Everything that decides the cells of one model.

    Attributes:
        grid: The study.
        drawn: Its prompts.
        store: Where cells are kept.
        model: Name of the model in the grid.
        identities: What `identify` says of this model, and of its base if it could be opened; by name in the grid.
    """

    grid: StudyGrid
    drawn: Drawn
    store: CellStore
    model: str
    identities: Mapping[str, Mapping[str, Any]]

    @property
    def entry(self) -> ModelEntry:
        """The model."""
        return self.grid.models[self.model]

    @cached_property
    def methods(self) -> dict[str, MethodEntry]:
        """The methods that work on this model."""
        based = self.entry.base in self.identities
        return {name: one for name, one in self.grid.methods.items() if based or not one.needs_base}

    def left_out(self) -> list[dict[str, str]]:
        """The other methods, and why."""
        base = self.entry.base
        reason = f"its base {base} could not be opened" if base else "the model has no base to compare with"
        return [
            {"model": self.model, "method": name, "reason": reason}
            for name in self.grid.methods
            if name not in self.methods
        ]

    @cached_property
    def refined(self) -> dict[str, MethodEntry]:
        """Those whose regions are refined."""
        return {name: one for name, one in self.methods.items() if len(self.grid.refinements(name)) > 1}

    @cached_property
    def made(self) -> dict[str, Method]:
        """The methods by their names in the grid, with their settings."""
        base = self.grid.models[self.entry.base].model if self.entry.base else None
        return {name: entry.made(base, self.grid.response) for name, entry in self.methods.items()}

    def utility(self) -> list[LocateJob]:
        """Jobs that locate what refinement takes out."""
        return [
            self._job(
                prompts,
                seed,
                {
                    name: [self._located("utility", name, prompts, seed, WHOLE, share) for share in self._shares(name)]
                    for name in self.refined
                },
            )
            for seed in self.grid.seeds
            for prompts in self.drawn.utility[seed].values()
            if self.refined
        ]

    def unions(self) -> list[Cell]:
        """The utility region of each method and seed."""
        return [
            self.union(name, seed, share)
            for seed in self.grid.seeds
            for name in self.refined
            for share in self._shares(name)
        ]

    def safety(self) -> list[LocateJob]:
        """Jobs that locate on harmful prompts and on halves of them, also outside of the utility regions."""
        return [
            self._job(rows, seed, {name: list(self._by_scores(name, rows, seed, part)) for name in self.methods})
            for seed, rows, part in self._parts()
        ]

    def subtracts(self) -> list[Cell]:
        """What is left of the regions without the utility regions."""
        return [
            self.refinement(name, rows, seed, part, fraction, "subtract")
            for seed, rows, part in self._parts()
            for name in self.methods
            if "subtract" in self.grid.refinements(name)
            for fraction in self.methods[name].fractions
        ]

    def refinement(
        self, name: str, prompts: PromptSet, seed: int, part: str, fraction: float | None, refinement: str
    ) -> Cell:
        """A region of a method on harmful prompts, refined or, with `none`, as located."""
        if refinement == "none":
            return self._located("safety", name, prompts, seed, part, fraction)
        useful = self.union(name, seed, self.share(name, fraction)).hash
        if refinement == "refill":
            return self._located("safety", name, prompts, seed, part, fraction, outside=useful)
        parents = (self._located("safety", name, prompts, seed, part, fraction).hash, useful)
        place = Place("safety", self.model, name, prompts.name, seed, part, fraction, refinement)
        return self._derived(place, parents)

    def union(self, name: str, seed: int, share: float | None) -> Cell:
        """The utility region of a method."""
        sets = self.drawn.utility[seed]
        parents = [self._located("utility", name, rows, seed, WHOLE, share).hash for rows in sets.values()]
        place = Place("utility", self.model, name, "+".join(sets), seed, WHOLE, share, "union")
        return self._derived(place, tuple(sorted(parents)))

    def cells(self) -> Iterator[Cell]:
        """Every cell of the model."""
        for job in self.utility():
            yield from job.cells.values()
        yield from self.unions()
        for seed, rows, part in self._parts():
            for name, entry in self.methods.items():
                for fraction in entry.fractions:
                    for refinement in self.grid.refinements(name):
                        yield self.refinement(name, rows, seed, part, fraction, refinement)

    def halves(self, prompts: PromptSet, seed: int) -> Iterator[tuple[str, PromptSet]]:
        """The halves of all splits with their names: 0a, 0b, 1a ..."""
        if self.grid.splits:
            pairs = split_prompts(prompts, len(prompts) // 2, self.grid.splits, seed)
            for number, pair in enumerate(pairs):
                yield from ((f"{number}{side}", half) for side, half in zip("ab", pair, strict=True))

    def _parts(self) -> Iterator[tuple[int, PromptSet, str]]:
        """Seed, rows and part of everything that is located for safety."""
        for seed in self.grid.seeds:
            for prompts in self.drawn.safety[seed].values():
                yield seed, prompts, WHOLE
                for part, half in self.halves(prompts, seed):
                    yield seed, half, part

    def _by_scores(self, name: str, prompts: PromptSet, seed: int, part: str) -> Iterator[Cell]:
        """Cells that are selected of one scoring."""
        for fraction in self.methods[name].fractions:
            for refinement in self.grid.refinements(name):
                if refinement != "subtract":
                    yield self.refinement(name, prompts, seed, part, fraction, refinement)

    def share(self, name: str, fraction: float | None) -> float | None:
        """What is selected per utility set beside a fraction for safety."""
        entry = self.methods[name]
        default = UTILITY_FRACTION if self.made[name].granularity == "weight" else fraction
        return entry.utility_fraction or default

    def _shares(self, name: str) -> list[float | None]:
        return list(dict.fromkeys(self.share(name, fraction) for fraction in self.methods[name].fractions))

    def _job(self, prompts: PromptSet, seed: int, cells: Mapping[str, list[Cell]]) -> LocateJob:
        scorings = tuple(Scoring(self.made[name], tuple(wanted)) for name, wanted in cells.items())
        missing = frozenset(cell.hash for wanted in cells.values() for cell in wanted)
        return LocateJob(self.store, self.entry, prompts, seed, self.grid.batch_size, scorings, missing)

    def _located(
        self,
        use: Use,
        name: str,
        prompts: PromptSet,
        seed: int,
        part: str,
        fraction: float | None,
        outside: str | None = None,
    ) -> Cell:
        method, scope = self.made[name], self.methods[name].scope
        key = {
            "tool": TOOL,
            "model": self._weights(self.model),
            "method": method.name,
            **self._settings[name],
            "prompts": prompts.hash,
            "seed": seed,
            "batch_size": self.grid.batch_size,
            "fraction": None if fraction is None else str(exact_fraction(fraction)),
            "scope": scope,
            "outside": outside,
        }
        refinement = "none" if outside is None else "refill"
        place = Place(use, self.model, name, prompts.name, seed, part, fraction, refinement)
        return Cell(place, key, scope=scope, outside=outside)

    def _derived(self, place: Place, parents: tuple[str, ...]) -> Cell:
        key = {"tool": TOOL, "made": place.refinement, "of": list(parents)}
        return Cell(place, key, parents=parents)

    @cached_property
    def _settings(self) -> dict[str, dict[str, Any]]:
        """Of each method: its settings, what its second checkpoint is, and the files that settings name."""
        found = {}
        for name, method in self.made.items():
            settings = dataclasses.asdict(method)
            base = settings.get("base")
            if base:
                del settings["base"]
            found[name] = {
                "settings": {
                    key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()
                },
                "base": self._weights(self.entry.base) if base and self.entry.base else None,
                "files": named_files(type(method), settings),
            }
        return found

    def _weights(self, name: str) -> dict[str, Any]:
        return {fact: value for fact, value in self.identities[name].items() if fact not in NAMES}
