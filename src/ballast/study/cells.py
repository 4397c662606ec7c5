"""A cell: one region of a study, in a file that is named by everything that decides it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from ballast.errors import RegionError, RunError
from ballast.regions import Coverage, Region, RegionFile
from ballast.regions.metadata import canonical_json
from ballast.runs import read_json, write_json

WHOLE = "whole"
Use = Literal["safety", "utility"]


@dataclass(frozen=True)
class Place:
    """Where a cell stands in the grid.

    Attributes:
        use: `safety`, or `utility` for what refinement takes out.
        model: Name in the grid.
        method: Name in the grid.
        set: Prompt set; for the union of the regions of all utility sets their names.
        seed: Of the rows drawn, and of the method.
        part: `whole` for all rows, or half `a` or `b` of a split: `0a`.
        fraction: Share that is selected; None for the method's own choice.
        refinement: `none`, `subtract`, `refill`, or `union` of utility regions.
    """

    use: Use
    model: str
    method: str
    set: str
    seed: int
    part: str
    fraction: float | None
    refinement: str


@dataclass(frozen=True)
class Cell:
    """One region of a study.

    Attributes:
        place: Where it stands; decides nothing.
        key: Everything that decides the region, as JSON.
        scope: How it is selected of the scores.
        outside: Hash of the cell whose weights are not selected.
        parents: Hashes of the cells it is made from, if it is made from regions alone.
    """

    place: Place
    key: Mapping[str, Any]
    scope: Any = None
    outside: str | None = None
    parents: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the key; names its files."""
        return hashlib.sha256(canonical_json(self.key).encode()).hexdigest()


class CellRecord(BaseModel):
    """What `cells/HASH.json` says of a cell.

    Attributes:
        state: `done`, or `failed`, which is tried again by the next run.
        hash: Of the cell.
        place: See `Place`; as it was in the grid that made the cell.
        key: Everything that decides the region.
        error: Why it failed, in one sentence.
        traceback: Of an error that is no fault of the user's.
        region_id: Of the region in `cells/HASH.safetensors`.
        granularity: Of the region.
        layout: Hash of the parameters it selects from; regions of one layout can be compared.
        weights: How many it holds.
        eligible: How many it could hold.
        units: How many neurons, heads or layers it holds; None for a region of single weights.
        coverage: What was scored and what was skipped.
        seconds: What the call took that located it, together with others.
        together: Hashes of the cells of that call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["done", "failed"]
    hash: str
    place: dict[str, JsonValue]
    key: dict[str, JsonValue]
    error: str | None = None
    traceback: str | None = None
    region_id: str | None = None
    granularity: str | None = None
    layout: str | None = None
    weights: int | None = None
    eligible: int | None = None
    units: int | None = None
    coverage: Coverage | None = None
    seconds: float | None = None
    together: tuple[str, ...] = ()


@dataclass(frozen=True)
class CellStore:
    """The folder of the cells."""

    folder: Path

    def region(self, name: str) -> Path:
        """The Region file of the cell with this hash."""
        return self.folder / f"{name}.safetensors"

    def record(self, name: str) -> CellRecord | None:
        """What is written of the cell with this hash; None if nothing is, or nothing that can be read."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        try:
            record = CellRecord.model_validate(read_json(path))
        except (RunError, ValidationError):  # torn, or another program's: the cell is made again
            return None
        return record if record.hash == name else None

    def is_done(self, name: str) -> bool:
        """Whether the region of the cell with this hash is there, whole and the one that was written."""
        record = self.record(name)
        if record is None or record.state != "done":
            return False
        try:
            return RegionFile.open(self.region(name)).region_id == record.region_id
        except RegionError:
            return False

    def write(self, cell: Cell, region: Region, *, seconds: float, together: tuple[str, ...]) -> None:
        """Write a region, then its record, which makes the cell done.

        Raises:
            RunError: They cannot be written.
        """
        region.save(self.region(cell.hash))
        metadata = region.metadata
        units = sum(map(len, metadata.selected_units.values()))
        self._write(
            cell,
            state="done",
            region_id=region.region_id,
            granularity=metadata.granularity,
            layout=metadata.layout_hash,
            weights=len(region),
            eligible=metadata.eligible,
            units=units or None,
            coverage=metadata.coverage,
            seconds=round(seconds, 3),
            together=together,
        )

    def write_failure(self, cell: Cell, error: str, traceback: str | None = None) -> None:
        """Write down why there is no region.

        Raises:
            RunError: It cannot be written.
        """
        self._write(cell, state="failed", error=error, traceback=traceback)

    def _write(self, cell: Cell, **facts: Any) -> None:
        record = CellRecord(hash=cell.hash, place=dataclasses.asdict(cell.place), key=dict(cell.key), **facts)
        write_json(self.folder / f"{cell.hash}.json", record.model_dump(mode="json"))
