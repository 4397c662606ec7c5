"""The tables of a study: their columns, and how they are written."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from ballast.runs import replacing


class CellRow(NamedTuple):
    """One region; see `Place` and `CellRecord`. `seconds` is that of the call that located `located_together` cells."""

    use: str
    model: str
    family: str
    method: str
    set: str
    seed: int
    part: str
    size: float | None
    refinement: str
    prompts: int | None
    state: str
    seconds: float | None
    located_together: int | None
    granularity: str | None
    weights: int | None
    eligible: int | None
    units: int | None
    scored_parameters: int | None
    skipped_parameters: int | None
    error: str | None
    hash: str


class PairRow(NamedTuple):
    """Two regions that differ in what `comparison` says; `docs/study.md` has the columns."""

    comparison: str
    model: str
    family: str
    refinement: str
    method_first: str
    method_second: str
    size_first: float | None
    size_second: float | None
    set_first: str
    set_second: str
    seed_first: int
    seed_second: int
    granularity_first: str | None
    granularity_second: str | None
    prompts: int
    near_duplicates: int
    weights_first: int | None
    weights_second: int | None
    intersection: int
    union: int
    iou: float
    macro_iou: float
    matrices: int
    matrices_left_out: int
    size_cap: float
    contained_first: float
    contained_second: float
    global_chance: float
    chance: float
    margin_chance: float | None
    excess: float | None
    p: float
    adjusted_p: float
    draws: int
    half_prompts: int | None = None
    splits: int | None = None
    half_iou: float | None = None
    half_chance: float | None = None
    ceiling_first: float | None = None
    ceiling_second: float | None = None
    ceiling: float | None = None
    corrected: float | None = None
    unit_intersection: int | None = None
    unit_union: int | None = None
    unit_iou: float | None = None
    unit_chance: float | None = None
    unit_size_cap: float | None = None
    unit_p: float | None = None
    window_chance: float | None = None
    window_p: float | None = None


class KWayRow(NamedTuple):
    """Subsets of k of the sets of one model, method, size, seed and refinement; see `KWay`."""

    model: str
    family: str
    method: str
    size: float | None
    seed: int
    refinement: str
    sets: int
    regions: int
    subsets: int
    iou: float
    lowest: float
    highest: float
    chance: float
    in_at_least: int
    in_at_least_chance: float


class RefinementRow(NamedTuple):
    """A pair of sets before and after refinement; see `decomposition.py` for `mechanical` and `remaining`."""

    model: str
    family: str
    method: str
    size: float | None
    seed: int
    refinement: str
    set_first: str
    set_second: str
    iou: float
    refined_iou: float
    change: float
    mechanical: float
    remaining: float
    expected_iou: float | None
    chance: float
    refined_chance: float
    corrected: float | None
    refined_corrected: float | None
    size_cap: float
    refined_size_cap: float
    weights_first: int
    weights_second: int
    refined_weights_first: int
    refined_weights_second: int
    shared_in_utility: float | None = None
    either_in_utility: float | None = None
    first_in_utility: float | None = None
    first_in_utility_chance: float | None = None
    second_in_utility: float | None = None
    second_in_utility_chance: float | None = None


TYPES: dict[type, Any] = {
    int: pyarrow.int64(),
    float: pyarrow.float64(),
    str: pyarrow.string(),
}


def write_table(folder: Path, name: str, kind: type[Any], rows: Sequence[Any]) -> None:
    """Write a table as CSV and as Parquet; a missing value is an empty field, or null.

    Args:
        folder: Of the tables.
        name: Of the files.
        kind: The class of the rows, one of those above; its fields are the columns, also of a table without rows.
        rows: In order.

    Raises:
        RunError: The folder cannot be written.
    """
    columns = {column: _type(of) for column, of in get_type_hints(kind).items()}
    table = pyarrow.Table.from_pylist([row._asdict() for row in rows], schema=pyarrow.schema([*columns.items()]))
    with replacing(folder / f"{name}.csv") as path:
        pyarrow.csv.write_csv(table, path)
    with replacing(folder / f"{name}.parquet") as path:
        pyarrow.parquet.write_table(table, path)


def _type(of: Any) -> Any:
    """The column's type of `int`, `float | None`, ..."""
    kinds = [kind for kind in (get_args(of) if isinstance(of, types.UnionType) else [of]) if kind is not type(None)]
    return TYPES[kinds[0]]
