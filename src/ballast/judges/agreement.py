"""How far two judges agree, beyond what chance would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ballast.errors import JudgeError


@dataclass(frozen=True)
class Agreement:
    """Agreement of two raters over the same rows.

    Attributes:
        n: Rows compared.
        agree: Share of rows on which both said the same, in [0, 1].
        kappa: Cohen's kappa, in [-1, 1]; None where it is not defined (no rows, or both raters always gave one and
            the same label, so that chance agreement is 1).
    """

    n: int
    agree: float | None
    kappa: float | None


def agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> Agreement:
    """Compare two raters.

    kappa = (p_o - p_e) / (1 - p_e), with p_o the observed agreement and p_e the agreement of two independent raters
    with the same label shares (Cohen 1960, A coefficient of agreement for nominal scales). Leave out rows that one of
    them could not score before calling this.

    Args:
        first: Labels of one rater.
        second: Labels of the other, row by row.

    Raises:
        JudgeError: The numbers of labels differ.
    """
    if len(first) != len(second):
        raise JudgeError(f"The judges scored {len(first)} and {len(second)} rows; compare them on the same rows.")
    n = len(first)
    if n == 0:
        return Agreement(0, None, None)
    agreeing = sum(one == other for one, other in zip(first, second, strict=True))
    left, right = Counter(first), Counter(second)
    chance = sum(left[label] * right[label] for label in left)  # times n^2; integers keep 1 - p_e exact
    if chance == n * n:
        return Agreement(n, agreeing / n, None)
    return Agreement(n, agreeing / n, (agreeing * n - chance) / (n * n - chance))
