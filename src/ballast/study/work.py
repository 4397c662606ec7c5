"""What a worker process does: open a model, locate regions with several methods, make regions of regions."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from ballast.errors import BallastError
from ballast.locate import Method, Scores, locate_all
from ballast.models import LanguageModel, open_model
from ballast.patches import Patch
from ballast.prompts import PromptSet
from ballast.regions import Region, refine
from ballast.regions.metadata import canonical_json
from ballast.regions.refine import union_of
from ballast.study.cells import Cell, CellStore
from ballast.study.grid import ModelEntry


class Scoring(NamedTuple):
    """A method with everything that is selected of its scores."""

    method: Method
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class LocateJob:
    """Several methods on one model with the same prompts; their passes are shared.

    Attributes:
        store: Where the cells go.
        model: What to open.
        prompts: What to locate with.
        seed: As for `locate`.
        batch_size: As for `locate`.
        scorings: At least one.
        missing: Hashes of the cells that are written; the others are there.
    """

    store: CellStore
    model: ModelEntry
    prompts: PromptSet
    seed: int
    batch_size: int
    scorings: tuple[Scoring, ...]
    missing: frozenset[str]

    @property
    def cells(self) -> dict[str, Cell]:
        """The cells of all methods by their hashes."""
        return {cell.hash: cell for scoring in self.scorings for cell in scoring.cells}

    def only(self, names: Collection[str]) -> Self:
        """The same for cells with these hashes."""
        kept = [Scoring(method, tuple(cell for cell in cells if cell.hash in names)) for method, cells in self.scorings]
        scorings = tuple(scoring for scoring in kept if scoring.cells)
        return dataclasses.replace(self, scorings=scorings, missing=self.missing & frozenset(names))

    def apart(self) -> list[Self]:
        """A job for each method that has something to do."""
        jobs = [self.only([cell.hash for cell in scoring.cells]) for scoring in self.scorings]
        return [job for job in jobs if job.missing]


class DeriveJob(NamedTuple):
    """A cell that is made from regions alone."""

    store: CellStore
    cell: Cell


_opened: dict[ModelEntry, LanguageModel] = {}  # at most one


@contextmanager
def model_of(entry: ModelEntry) -> Iterator[LanguageModel]:
    """A model, opened once per process while the same one is asked for; after an error it is opened anew."""
    lm = _opened.pop(entry, None)
    _opened.clear()  # before another is opened: two may not fit
    if lm is None:
        lm = open_model(entry.model, revision=entry.revision, dtype=entry.dtype)
        if entry.patch is not None:
            Patch.load(entry.patch).apply(lm.model)
    yield lm
    _opened[entry] = lm


def identify(entry: ModelEntry) -> dict[str, Any]:
    """What a model is: its identity, and a hash of what makes tokens of prompts.

    Raises:
        BallastError: It cannot be opened, or the patch is for another model.
    """
    with model_of(entry) as lm:
        tokens = canonical_json([lm.tokenizer.chat_template, lm.tokenizer.get_vocab()])
        return {**lm.identity(), "tokenizer": hashlib.sha256(tokens.encode()).hexdigest()}


def locate_cells(job: LocateJob) -> None:
    """Score with all methods and write the missing cells; what cannot be selected is written down as failed.

    Raises:
        BallastError: As `locate_all` raises it.
    """
    with model_of(job.model) as lm:
        start = time.monotonic()
        methods = [scoring.method for scoring in job.scorings]
        found = locate_all(lm, job.prompts, methods, seed=job.seed, batch_size=job.batch_size)
        seconds = time.monotonic() - start
        for scoring, scores in zip(job.scorings, found, strict=True):
            for cell in scoring.cells:
                if cell.hash in job.missing:
                    _write(job, cell, scores, seconds)


def _write(job: LocateJob, cell: Cell, scores: Scores, seconds: float) -> None:
    try:
        outside = None if cell.outside is None else Region.load(job.store.region(cell.outside))
        region = scores.select(cell.place.fraction, scope=cell.scope, outside=outside)
    except BallastError as error:
        job.store.write_failure(cell, str(error))
    else:
        job.store.write(cell, region, seconds=seconds, together=tuple(job.cells))


def derive(job: DeriveJob) -> None:
    """Make a cell of others: the union of its parents, or the first without the second.

    Raises:
        RegionError: A parent is missing or damaged, or nothing would be left.
    """
    start = time.monotonic()
    parents = [Region.load(job.store.region(name)) for name in job.cell.parents]
    region = union_of(parents) if job.cell.place.refinement == "union" else refine(parents[0], parents[1:]).region
    job.store.write(job.cell, region, seconds=time.monotonic() - start, together=(job.cell.hash,))
