"""What the report expects in `overlap.json`; fields it does not show are ignored."""

from __future__ import annotations

from typing import Self

from pydantic import PositiveInt, model_validator

from ballast.report.schema import Artefact, Cell, RegionPrompts


class ComparedRegion(Artefact):
    """One of the regions; `name` is as the user named it, mostly a path."""

    name: str
    region_id: str
    model: str
    method: str
    granularity: str
    prompts: RegionPrompts | None
    weights: PositiveInt
    eligible: PositiveInt
    cells: list[Cell]


class Part(Artefact):
    """A pair within one layer or one role; no numbers where neither region has a weight."""

    layer: int | None
    role: str | None
    intersection: int
    union: int
    iou: float | None
    chance: float | None


class Window(Artefact):
    """Two runs of consecutive layers, [start, end) each, compared."""

    first: tuple[int, int]
    second: tuple[int, int]
    chance: float
    p: float
    start_difference: int
    end_difference: int


class Units(Artefact):
    """A pair compared by neurons, heads or layers."""

    granularity: str
    intersection: int
    union: int
    iou: float
    chance: float
    size_cap: float
    p: float
    window: Window | None


class SharedPrompts(Artefact):
    """Near duplicates between the prompts of a pair, and how many prompts each has."""

    same_set: bool
    near_duplicates: int
    of: tuple[int, int]


class Corrected(Artefact):
    """A pair at half the prompts; `corrected` is None where it cannot be identified."""

    iou: float
    chance: float
    ceiling: float
    corrected: float | None
    low: float | None
    high: float | None
    splits: int
    resamples: int


class Pair(Artefact):
    """Two regions, by their positions."""

    first: int
    second: int
    intersection: int
    union: int
    iou: float
    chance: float
    global_chance: float
    margin_chance: float
    size_cap: float
    contained: tuple[float, float]
    macro_iou: float
    excess: float | None
    p: float
    adjusted_p: float
    draws: int
    by_layer: list[Part]
    by_role: list[Part]
    units: Units | None
    prompts: SharedPrompts | None
    corrected: Corrected | None = None


class All(Artefact):
    """All regions at once."""

    regions: int
    intersection: int
    union: int
    iou: float
    chance: float


class Agreed(Artefact):
    """Weights in at least so many of the regions."""

    at_least: int
    weights: int
    chance: float
    stability: float | None


class DisjointSamples(Artefact):
    """How alike the regions of disjoint samples of one prompt set are; `prompts` on each side."""

    prompts: int
    iou: float
    chance: float
    lowest: float
    highest: float
    splits: int


class Overlap(Artefact):
    """`overlap.json`; `ceilings` and `convergence` have one entry per region."""

    regions: list[ComparedRegion]
    pairs: list[Pair]
    all: All
    agreement: list[Agreed] | None
    ceilings: tuple[DisjointSamples, ...] = ()
    convergence: tuple[tuple[DisjointSamples, ...], ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse records that no call of `ballast overlap` writes: figures and tables look rows up by position."""
        count = len(self.regions)
        found = [(pair.first, pair.second) for pair in self.pairs]
        if not found or len(set(found)) < len(found) or not all(0 <= one < other < count for one, other in found):
            raise ValueError("a pair is not of two of the regions")
        if len({tuple((cell.layer, cell.role) for cell in region.cells) for region in self.regions}) > 1:
            raise ValueError("the regions have different cells")
        if self.ceilings and (len(self.ceilings) != count or not all(pair.corrected for pair in self.pairs)):
            raise ValueError("ceilings and corrected overlaps do not fit")
        if len(self.convergence) not in (0, count) or not all(self.convergence):
            raise ValueError("convergence has not every region")
        return self
