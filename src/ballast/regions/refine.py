"""Utility refinement: what is left of a safety region without the weights that usefulness needs as well."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ballast.errors import RegionError, UsageError
from ballast.regions.chance import flat_counts, intersection_moments, matrix_sizes
from ballast.regions.formed import Formed
from ballast.regions.region import Region
from ballast.shards import first_entry, own_part


class Refinement(NamedTuple):
    """A refined region and what was taken out.

    Attributes:
        region: Weights of the located region that are in no utility region.
        located: Number of weights before.
        removed: Number of weights taken out.
        share: removed / located.
        chance: The share expected if both were random, with these numbers of weights in every weight matrix.
        excess: (removed - its mean) / its standard deviation under the same chance; None if it cannot vary.
        cells: Rows `layer`, `role`, `located`, `removed`, of every cell with located weights.
    """

    region: Region
    located: int
    removed: int
    share: float
    chance: float
    excess: float | None
    cells: list[dict[str, Any]]

    def summary(self) -> dict[str, Any]:
        """What `refinement.json` holds: everything but the region itself, and its id."""
        return {"region_id": self.region.region_id, **{key: getattr(self, key) for key in self._fields[1:]}}


def refine(region: Region, utility: Sequence[Region]) -> Refinement:
    """Take the weights of all utility regions out of a safety region (set difference, arXiv 2402.05162).

    Args:
        region: Found on harmful prompts.
        utility: At least one region found by the same method on harmless prompts with answers; their union counts.

    Raises:
        UsageError: There is no utility region.
        RegionError: The regions live in different layouts, or nothing would be left.
    """
    useful = union_of(utility)
    removed = region.intersection_size(useful)
    if removed == len(region):
        raise RegionError(
            f"All {removed:,} weights of the region are also among those for utility, so nothing would be left; "
            "select fewer for utility or more for safety."
        )
    counts, sizes = (flat_counts(region), flat_counts(useful)), matrix_sizes(region)
    mean, variance = intersection_moments(*counts, sizes)
    left = region - useful
    cells = [
        {key: before[key] for key in ("layer", "role")}
        | {"located": before["selected"], "removed": before["selected"] - after["selected"]}
        for before, after in zip(region.cells(), left.cells(), strict=True)
        if before["selected"]
    ]
    return Refinement(
        region=left,
        located=len(region),
        removed=removed,
        share=removed / len(region),
        chance=mean / len(region),
        excess=(removed - mean) / math.sqrt(variance) if variance > 0 else None,
        cells=cells,
    )


def union_of(regions: Sequence[Region]) -> Region:
    """All weights of at least one region.

    Raises:
        UsageError: There is none.
        RegionError: The regions live in different layouts.
    """
    if not regions:
        raise UsageError("A refinement needs at least one utility region; give one.")
    return functools.reduce(operator.or_, regions)


def outside_of(scores: Mapping[str, torch.Tensor], region: Region) -> Mapping[str, torch.Tensor]:
    """Scores with the weights of a region set to 0, so that they are not selected; formed when asked for."""

    def without(name: str) -> torch.Tensor:
        if name not in region.indices:
            return scores[name]
        values = scores[name].clone()
        own = own_part(values).view(-1)
        places = region.indices[name].to(own.device, torch.int64) - first_entry(values)
        own[places[(places >= 0) & (places < len(own))]] = 0
        return values

    return Formed(scores, without)
