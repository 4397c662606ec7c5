"""What is left to do of a study, and having it done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ballast.progress import track
from ballast.study.cells import Cell, CellRecord, CellStore
from ballast.study.engines.base import Done, Engine, Job, Result
from ballast.study.work import DeriveJob, LocateJob, derive, locate_cells


class Schedule:
    """Has missing cells made, and knows which are there."""

    def __init__(self, engine: Engine, store: CellStore) -> None:
        """Nothing is known to be there.

        Args:
            engine: Who does the work.
            store: Where cells are kept.
        """
        self.engine, self.store = engine, store
        self._checked: dict[str, bool] = {}

    def is_done(self, name: str) -> bool:
        """Whether the cell with this hash is there; its files are read once."""
        if name not in self._checked:
            self._checked[name] = self.store.is_done(name)
        return self._checked[name]

    def done(self, cells: Iterable[Cell]) -> dict[str, CellRecord]:
        """The records of those cells that are there, by hash."""
        found = {cell.hash: self.store.record(cell.hash) for cell in cells if self.is_done(cell.hash)}
        return {name: record for name, record in found.items() if record is not None}

    def locate(self, calls: Sequence[LocateJob], description: str) -> None:
        """Have the missing cells of all calls located; those that fail are written down."""
        self._run([job for call in calls for job in self.unfinished(call)], description)

    def unfinished(self, call: LocateJob) -> list[LocateJob]:
        """What is left to do of a call.

        The bits of a score can depend on the methods that shared its passes. So what was interrupted is located again
        together with what it was located with before, and only written where it is missing.
        """
        missing = {name for name, cell in call.cells.items() if not self.is_done(name) and not self._is_blocked(cell)}
        records = [record for name in call.cells if (record := self.store.record(name))]
        interrupted = missing - {record.hash for record in records if record.state == "failed"}
        jobs: list[LocateJob] = []
        for record in records:
            together = missing.intersection(record.together)
            if together & interrupted:
                jobs.append(replace(call.only(record.together), missing=frozenset(together)))
                missing -= together
        if missing:
            jobs.append(replace(call.only(missing), missing=frozenset(missing)))
        return jobs

    def derive(self, cells: Sequence[Cell], description: str) -> None:
        """Have the missing ones of these cells made of others; those that fail are written down."""
        jobs = [
            DeriveJob(self.store, cell)
            for cell in {cell.hash: cell for cell in cells}.values()
            if not self.is_done(cell.hash) and not self._is_blocked(cell)
        ]
        for done in self.tracked(derive, jobs, description):
            cell = done.job.cell
            if not self._is_written(cell.hash) and done.failure is not None:
                self.store.write_failure(cell, *done.failure)

    def _is_blocked(self, cell: Cell) -> bool:
        """Whether a cell that this one needs is not there; that is then written down."""
        needed = [*cell.parents, *([cell.outside] if cell.outside else [])]
        lacking = [name for name in needed if not self.is_done(name)]
        if lacking:
            record = self.store.record(lacking[0])
            reason = record.error if record and record.error else "it was not located"
            self.store.write_failure(cell, f"A region that this one is made with is missing: {reason}")
        return bool(lacking)

    def _run(self, jobs: Sequence[LocateJob], description: str) -> None:
        alone: list[LocateJob] = []
        for done in self.tracked(locate_cells, jobs, description):
            left = done.job.only([name for name in done.job.missing if not self._is_written(name)])
            if done.failure is None:
                continue
            if len(done.job.scorings) > 1:  # one bad method spoils only its own cells
                alone += left.apart()
                continue
            for cell in left.cells.values():
                self.store.write_failure(cell, *done.failure)
        if alone:
            self._run(alone, f"{description}, methods alone")

    def _is_written(self, name: str) -> bool:
        """Whether the job that just ended wrote a cell."""
        record = self.store.record(name)
        self._checked[name] = record is not None and record.state == "done"
        return self._checked[name]

    def tracked(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], description: str
    ) -> Iterator[Done[Job, Result]]:
        """Do the work on every job, showing how many are done."""
        if jobs:
            for _, done in zip(track(jobs, description), self.engine.run(work, jobs), strict=True):
                yield done
