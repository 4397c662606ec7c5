"""How much regions have in common, beside what chance alone would give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ballast.errors import RegionError, UsageError
from ballast.regions.arrays import Counts
from ballast.regions.chance import Permutation, chance_iou, chance_of_all, excess, permutation_test, size_cap
from ballast.regions.counting import Selected, Shared, count_shared
from ballast.regions.metadata import RegionMetadata, merged_fingerprints
from ballast.regions.unit_overlap import UnitOverlap, unit_overlap

DRAWS = 1000


class PartOverlap(NamedTuple):
    """Two regions compared within one layer, or within one role.

    Attributes:
        layer: Decoder block; None for a role, and outside of the blocks.
        role: Such as `query`; None for a layer.
        intersection: Weights in both.
        union: Weights in either.
        iou: intersection / union; None where neither has a weight.
        chance: As for the whole; None where neither has a weight.
    """

    layer: int | None
    role: str | None
    intersection: int
    union: int
    iou: float | None
    chance: float | None


class PairOverlap(NamedTuple):
    """Two regions compared.

    Attributes:
        first: Position of the one region in the list.
        second: Position of the other.
        intersection: Weights in both.
        union: Weights in either.
        iou: intersection / union, in [0, 1].
        chance: Expected IoU of random regions with the same number of weights in every weight matrix.
        size_cap: The highest IoU that these numbers per weight matrix allow.
        excess: (intersection - its mean) / its standard deviation under the same chance; None if it cannot vary.
        p: One-sided test of the intersection against the same chance.
        global_chance: Expected IoU of random regions with the same number of weights, wherever they are.
        margin_chance: Expected IoU given the numbers per row and per column of every matrix, by formula.
        contained: intersection / weights of the first, and of the second.
        macro_iou: Mean IoU of the weight matrices in which either region has a weight.
        matrices: How many these are.
        matrices_left_out: How many there are beside these.
        by_layer: The same within each layer.
        by_role: The same within each role.
        units: The same per unit, if both regions are made of units of one granularity, out of the same numbers.
    """

    first: int
    second: int
    intersection: int
    union: int
    iou: float
    chance: float
    size_cap: float
    excess: float | None
    p: Permutation
    global_chance: float
    margin_chance: float
    contained: tuple[float, float]
    macro_iou: float
    matrices: int
    matrices_left_out: int
    by_layer: tuple[PartOverlap, ...]
    by_role: tuple[PartOverlap, ...]
    units: UnitOverlap | None = None

    def as_json(self) -> dict[str, Any]:
        """Every number by its name."""
        return {
            **self._asdict(),
            **self.p._asdict(),
            "by_layer": [part._asdict() for part in self.by_layer],
            "by_role": [part._asdict() for part in self.by_role],
            "units": self.units.as_json() if self.units else None,
        }


class AllOverlap(NamedTuple):
    """All regions compared at once.

    Attributes:
        regions: How many.
        intersection: Weights in all of them.
        union: Weights in any.
        iou: intersection / union.
        chance: Expected weights in all over expected weights in any, for random regions with the same numbers.
    """

    regions: int
    intersection: int
    union: int
    iou: float
    chance: float


class Overlaps(NamedTuple):
    """Regions compared.

    Attributes:
        pairs: Every two of them.
        all: All of them at once.
        selected: Weights per region and weight matrix, (regions, matrices).
        both: Weights in both regions of a pair, (pairs, matrices).
        sizes: Weights there are, (matrices,).
    """

    pairs: list[PairOverlap]
    all: AllOverlap
    selected: Counts
    both: Counts
    sizes: Counts


def overlap(
    regions: Sequence[Selected], *, draws: int = DRAWS, seed: int = 0, other_weights: bool = False
) -> list[PairOverlap]:
    """Compare every pair of regions; see `overlaps`."""
    return overlaps(regions, draws=draws, seed=seed, other_weights=other_weights).pairs


def overlaps(
    regions: Sequence[Selected],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    other_weights: bool = False,
    outside: Selected | None = None,
) -> Overlaps:
    """Compare every pair of regions, and all at once.

    Args:
        regions: At least two, of one layout; `Region`, or `RegionFile` where not all fit into memory.
        draws: Shuffles of the permutation test.
        seed: Of these.
        other_weights: Also compare regions located on different weights of one architecture.
        outside: Weights that none of the regions could hold, such as those for utility: chance draws from the rest,
            but that by margins and that of windows still from all.

    Raises:
        UsageError: Fewer than two regions, or no draw.
        RegionError: Regions of different layouts or weights, or intersections over different numbers of prompts.
    """
    if len(regions) < 2:
        raise UsageError("An overlap needs at least two regions; give another one.")
    if draws < 1:
        raise UsageError(f"{draws} shuffles give no p-value; ask for at least one, such as {DRAWS}.")
    _check(regions if outside is None else [*regions, outside], other_weights)
    shared = counted_outside(regions, outside)
    barred = outside.metadata if outside is not None else None
    pairs = [_pair(regions, shared, number, draws, seed, barred) for number in range(len(shared.pairs))]
    in_all, in_any = int(shared.in_all.sum()), int(shared.in_any.sum())
    chance = chance_of_all(shared.selected, shared.sizes)
    of_all = AllOverlap(len(regions), in_all, in_any, in_all / in_any, chance)
    return Overlaps(pairs, of_all, shared.selected, shared.both, shared.sizes)


def counted_outside(regions: Sequence[Selected], outside: Selected | None) -> Shared:
    """What regions share, with the places outside of a further region as all the places there are."""
    shared = count_shared(regions)
    return shared if outside is None else replace(shared, sizes=shared.sizes - count_shared([outside]).selected[0])


def _pair(
    regions: Sequence[Selected], shared: Shared, number: int, draws: int, seed: int, barred: RegionMetadata | None
) -> PairOverlap:
    first, second = shared.pairs[number]
    a, b, both, sizes = shared.selected[first], shared.selected[second], shared.both[number], shared.sizes
    either = a + b - both
    intersection, union = int(both.sum()), int(either.sum())
    expected = float(shared.by_margins[number].sum())
    totals = (counts.sum(keepdims=True) for counts in (a, b, sizes))
    busy = either > 0
    seeds = (seed, first, second)
    return PairOverlap(
        first=first,
        second=second,
        intersection=intersection,
        union=union,
        iou=intersection / union,
        chance=chance_iou(a, b, sizes),
        size_cap=size_cap(a, b),
        excess=excess(intersection, a, b, sizes),
        p=permutation_test(intersection, a, b, sizes, draws=draws, seed=seeds),
        global_chance=chance_iou(*totals),
        margin_chance=expected / (int(a.sum() + b.sum()) - expected),
        contained=(intersection / int(a.sum()), intersection / int(b.sum())),
        macro_iou=float((both[busy] / either[busy]).mean()),
        matrices=int(busy.sum()),
        matrices_left_out=int((~busy).sum()),
        by_layer=_parts(shared, number, "layer"),
        by_role=_parts(shared, number, "role"),
        units=unit_overlap(regions[first].metadata, regions[second].metadata, draws=draws, seed=seeds, outside=barred),
    )


def _parts(shared: Shared, number: int, by: str) -> tuple[PartOverlap, ...]:
    """The pair within each layer or role, in their order."""
    first, second = shared.pairs[number]
    members: dict[int | str | None, list[int]] = defaultdict(list)
    for matrix, (layer, role) in enumerate(zip(shared.layers, shared.roles, strict=True)):
        members[layer if by == "layer" else role].append(matrix)
    rows = []
    for key in sorted(members, key=lambda key: (key is None, key)):
        a, b, both, sizes = (
            counts[members[key]]
            for counts in (shared.selected[first], shared.selected[second], shared.both[number], shared.sizes)
        )
        intersection = int(both.sum())
        union = int(a.sum() + b.sum()) - intersection
        rows.append(
            PartOverlap(
                layer=key if isinstance(key, int) else None,
                role=key if isinstance(key, str) else None,
                intersection=intersection,
                union=union,
                iou=intersection / union if union else None,
                chance=chance_iou(a, b, sizes) if union else None,
            )
        )
    return tuple(rows)


def _check(regions: Sequence[Selected], other_weights: bool) -> None:
    """Refuse what has no common coordinates, and what has but says nothing."""
    first = regions[0].metadata
    for other in (region.metadata for region in regions[1:]):
        if other.layout_hash != first.layout_hash:
            raise RegionError(
                f"The regions select from different parameters ({first.model.name} and {other.model.name}); only "
                "regions of one architecture and coverage can be compared."
            )
    if not other_weights:
        known = first.model
        for other in (region.metadata for region in regions[1:]):
            known = known.model_copy(update={"fingerprints": merged_fingerprints(known, other.model)})
    # an intersection over prompts shrinks with every prompt, so its size says nothing beside one of fewer prompts
    numbers = {
        region.metadata.prompts.n
        for region in regions
        if region.metadata.settings.get("selection") == "intersection" and region.metadata.prompts is not None
    }
    if len(numbers) > 1:
        raise RegionError(
            f"The regions are intersections over {min(numbers)} and {max(numbers)} prompts, and every prompt makes an "
            "intersection smaller; locate them with the same number of prompts."
        )
