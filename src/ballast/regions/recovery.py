"""How much of a planted region a method found, beside what chance alone would give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.stats import hypergeom, rankdata

from ballast.errors import RegionError
from ballast.regions.overlap import flat_counts, intersection_moments, matrix_sizes
from ballast.regions.region import Region
from ballast.regions.units import Level, UnitPart, units_of

CHANCE_LEVEL = 0.95


class Recovery(NamedTuple):
    """A found region against the planted one, weight by weight.

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


def recovery(found: Region, planted: Region) -> Recovery:
    """Compare a found region with the planted one.

    Raises:
        RegionError: The regions live in different layouts.
    """
    shared = found.intersection_size(planted)
    eligible, size, drawn = planted.metadata.eligible, len(planted), len(found)
    low, high = hypergeom.interval(CHANCE_LEVEL, eligible, size, drawn)
    mean, _ = intersection_moments(flat_counts(found), flat_counts(planted), matrix_sizes(planted))
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
    """Whether the planted layers, matrices or neurons are those that hold the most found weights.

    Units are ranked by the share of their weights that was found. A unit is planted if any of its weights is.

    Attributes:
        level: What a unit is.
        planted: Units that hold planted weights.
        units: All units.
        precision: Of as many units as were planted, those ranked highest: the share that is planted. Ties count as in
            the mean over all orders of them.
        chance: planted / units.
        area: Probability that a planted unit ranks above another one, ties counted half (area under the curve); 0.5 by
            chance.
    """

    level: Level
    planted: int
    units: int
    precision: float
    chance: float
    area: float


def unit_recovery(found: Region, planted: Region, parts: Iterable[UnitPart], level: Level) -> UnitRecovery:
    """Compare a found region with the planted one, unit by unit.

    Args:
        found: What a method found.
        planted: The truth.
        parts: The parameters that could be selected, such as `lm.parts.eligible()`.
        level: What to compare.

    Raises:
        RegionError: There are no such units, or every one of them is planted or none.
    """
    units = units_of(parts, level)
    is_planted = units.counted(planted.indices) > 0
    total = int(is_planted.sum())
    if total in (0, units.count):
        raise RegionError(f"{total} of {units.count} units are planted, so no {level} can be found; compare weights.")
    density = units.counted(found.indices) / units.sizes()
    cut = np.sort(density)[-total]
    above, tied = density > cut, density == cut
    hits = is_planted[above].sum() + (total - above.sum()) * is_planted[tied].mean()
    ranks = rankdata(density)[is_planted]  # 1 is the lowest; ties share their mean
    area = (ranks.sum() - total * (total + 1) / 2) / (total * (units.count - total))
    return UnitRecovery(level, total, units.count, float(hits) / total, total / units.count, float(area))
