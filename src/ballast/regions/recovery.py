"""How much of a planted region a method found, beside what chance alone would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom, rankdata

from ballast.errors import RegionError
from ballast.regions.chance import intersection_moments
from ballast.regions.layout import PartLike
from ballast.regions.region import Region
from ballast.regions.selection import select_top
from ballast.regions.threshold import Direction
from ballast.regions.units import Units, matrix_units

CHANCE_LEVEL = 0.95


def at_planted_size(
    scores: Mapping[str, torch.Tensor], planted: Region, parts: Iterable[PartLike], direction: Direction = "top"
) -> dict[str, torch.Tensor]:
    """As many weights as were planted, those with the largest scores; fewer if fewer scores are above zero.

    Args:
        scores: As for `select_top`, of every weight that could have been planted.
        planted: The truth.
        parts: The parameters that have scores, such as `lm.parts.eligible()`.
        direction: `top`, or `bottom` for the control that takes the smallest scores, zeros too.

    Returns:
        Ascending flat C-order indices (k,) by parameter name.

    Raises:
        RegionError: No score is above zero.
        NumericalError: A score is NaN, infinite or negative.
    """
    count = len(planted)
    if direction == "top":
        count = min(count, sum(int(values.count_nonzero()) for values in scores.values()))
    return select_top(scores, count=count, parts=parts, direction=direction).indices


class Recovery(NamedTuple):
    """What was found against what was planted, weight by weight.

    Chance is a region of the found size drawn uniformly from all weights that could have been selected: the shared
    weights are then hypergeometric. For a planted random mask this holds of every method that does not know the mask.
    For planted layers or neurons it is a yardstick only; the test is the same method on the untaught model.

    Attributes:
        planted: Weights that were planted.
        found: Weights that were found.
        shared: Weights in both.
        precision: shared / found; equal to the recall if as many weights were found as were planted.
        recall: shared / planted.
        chance: The precision expected by chance, planted / all weights.
        low: Lower end of the central interval that holds the precision by chance with probability 95 %.
        high: Upper end of it.
        p: Probability that chance shares at least as many.
        within_matrices: The precision expected of a region with as many weights in every weight matrix as the found
            one, drawn uniformly within each. A precision above `chance` but not above this one found the matrices only.
    """

    planted: int
    found: int
    shared: int
    precision: float
    recall: float
    chance: float
    low: float
    high: float
    p: float
    within_matrices: float


def recovery(found: Mapping[str, torch.Tensor], planted: Region) -> Recovery:
    """Compare what was found with what was planted.

    Args:
        found: Ascending flat C-order indices (k,) by parameter name, such as `region.indices`.
        planted: The truth.

    Raises:
        RegionError: Nothing was found, or weights that could not have been planted.
    """
    strangers = found.keys() - planted.layout.keys()
    if strangers:
        raise RegionError(f"{min(strangers)} is not in the layout of the planted region; locate on the model of both.")
    if not any(map(len, found.values())):
        raise RegionError("No weight was found, so nothing can be compared; select at least one.")
    matrices = matrix_units(planted.layout)
    in_found, in_planted = matrices.counted(found), matrices.counted(planted.indices)
    eligible, size, drawn = planted.metadata.eligible, len(planted), int(in_found.sum())
    shared = sum(
        len(np.intersect1d(found[name].numpy(), planted.indices[name].numpy(), assume_unique=True))
        for name in found.keys() & planted.indices.keys()
    )
    low, high = hypergeom.interval(CHANCE_LEVEL, eligible, size, drawn)
    mean, _ = intersection_moments(in_found, in_planted, matrices.sizes())
    return Recovery(
        planted=size,
        found=drawn,
        shared=shared,
        precision=shared / drawn,
        recall=shared / size,
        chance=size / eligible,
        low=float(low) / drawn,
        high=float(high) / drawn,
        p=float(hypergeom.sf(shared - 1, eligible, size, drawn)),
        within_matrices=mean / drawn,
    )


class UnitRecovery(NamedTuple):
    """Whether the planted layers, matrices, neurons or heads are those that a method ranks highest.

    A unit is planted if any of its weights is.

    Attributes:
        kind: What a unit is.
        planted: Units that hold planted weights.
        units: All units.
        precision: Of as many units as were planted, those ranked highest: the share that is planted. Ties count as in
            the mean over all orders of them.
        chance: planted / units.
        area: Probability that a planted unit ranks above another one, ties counted half (area under the curve); 0.5 by
            chance.
    """

    kind: str
    planted: int
    units: int
    precision: float
    chance: float
    area: float


def unit_recovery(found: Mapping[str, torch.Tensor], planted: Region, units: Units) -> UnitRecovery:
    """Compare what was found with what was planted, units being ranked by the share of their weights that was found.

    Args:
        found: As for `recovery`.
        planted: The truth.
        units: Such as `units_of(lm, "layer")`.

    Raises:
        RegionError: Every one of the units is planted, or none.
    """
    density = units.counted(found) / units.sizes()
    return ranked_recovery(units.kind, density, units.counted(planted.indices) > 0)


def ranked_recovery(kind: str, scores: NDArray[np.floating[Any]], is_planted: NDArray[np.bool_]) -> UnitRecovery:
    """Compare scores of units with which of them were planted.

    Args:
        kind: What a unit is.
        scores: (units,); larger ranks higher.
        is_planted: (units,) the truth.

    Raises:
        RegionError: Every one of the units is planted, or none.
    """
    total, count = int(is_planted.sum()), len(is_planted)
    if total in (0, count):
        raise RegionError(f"{total} of {count} units are planted, so no {kind} can be found; compare weights.")
    cut = np.sort(scores)[-total]
    above, tied = scores > cut, scores == cut
    hits = is_planted[above].sum() + (total - above.sum()) * is_planted[tied].mean()
    ranks = rankdata(scores)[is_planted]  # 1 is the lowest; ties share their mean
    area = (ranks.sum() - total * (total + 1) / 2) / (total * (count - total))
    return UnitRecovery(kind, total, count, float(hits) / total, total / count, float(area))
