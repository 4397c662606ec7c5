"""Intervals and tests for rates, paired changes and what a paired comparison could have seen.

With nothing counted there is no interval: functions return None then, never NaN, which JSON does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

from ballast.errors import UsageError

# Steps inside the bracket of a root: at the estimate itself the score equation is 0 = 0 when no pair is discordant.
INSIDE = 1e-10
# Most resampled values held at once by the bootstrap, about 32 MB per array.
BATCH_VALUES = 1 << 22


class Interval(NamedTuple):
    """A closed interval, low <= high."""

    low: float
    high: float


def wilson(k: int, n: int, level: float = 0.95) -> Interval | None:
    """Wilson's score interval for a proportion, without continuity correction.

    Args:
        k: Successes, 0 <= k <= n.
        n: Trials; with none there is no interval.
        level: Confidence level in (0, 1).

    Raises:
        UsageError: The counts are impossible.

    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    if not 0 <= k <= n:
        raise UsageError(f"{k} successes of {n} are impossible; give 0 <= k <= n.")
    if n == 0:
        return None
    found = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar test: is a discordant pair equally likely to go either way?

    Args:
        b: Pairs that changed one way.
        c: Pairs that changed the other way.

    Returns:
        The p-value in (0, 1] of `b` under Binomial(b + c, 1/2); 1 when no pair changed.

    Source: McNemar, Psychometrika 12 (1947), 153-157, with the binomial in place of its normal approximation.
    """
    return 1.0 if b + c == 0 else float(stats.binomtest(b, b + c).pvalue)


def rank_p(value: float, drawn: Sequence[float]) -> float:
    """How often chance does as well: (1 + draws at least as large) / (1 + draws), in (0, 1].

    Exact if the value would be one more of the draws under the null hypothesis; with n draws never below 1 / (1 + n).

    Source: Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9 (2010), article 39.
    """
    return (1 + sum(other >= value for other in drawn)) / (1 + len(drawn))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: rejecting those at most `level` keeps the chance of any false rejection below it.

    Args:
        p_values: Of one family of tests, however dependent.

    Returns:
        The corrected p-values in the same order, at most 1.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = so_far
    return corrected


def paired_difference_interval(fell: int, rose: int, n: int, level: float = 0.95) -> Interval | None:
    """Tango's score interval for the difference of two proportions of the same n pairs, after minus before.

    The set of differences that the score test does not reject, so it goes with McNemar's test, stays in [-1, 1] and has
    a width even when no pair changed. Fagerland, Lydersen and Laake (Statistics in Medicine 33 (2014), 2850-2875)
    recommend it among ten intervals; a bootstrap would give the empty interval [0, 0] when no pair changed.

    Args:
        fell: Pairs with the event before and not after.
        rose: Pairs with the event after and not before.
        n: All pairs; with none there is no interval.
        level: Confidence level in (0, 1).

    Raises:
        UsageError: The counts are impossible.

    Source: Tango, Statistics in Medicine 17 (1998), 891-908, section 3.
    """
    if min(fell, rose) < 0 or fell + rose > n:
        raise UsageError(f"{fell} and {rose} changed pairs of {n} are impossible; give counts that fit into n.")
    if n == 0:
        return None
    z = float(stats.norm.ppf((1 + level) / 2))
    return Interval(_score_bound(fell, rose, n, z), -_score_bound(rose, fell, n, z))


def _score_bound(fell: int, rose: int, n: int, z: float) -> float:
    """The lower difference at which the score statistic equals z."""

    def excess(difference: float) -> float:
        # p_fell: its maximum-likelihood estimate when p_rose = p_fell + difference, the root of a p^2 + b p + c = 0
        a, c = 2 * n, -fell * difference * (1 - difference)
        b = (2 * n - rose + fell) * difference - rose - fell
        p_fell = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * p_fell + difference * (1 - difference))
        return rose - fell - n * difference - z * sqrt(max(variance, 0.0))

    highest = (rose - fell) / n - INSIDE
    return float(brentq(excess, -1.0, highest, xtol=1e-12)) if highest > -1 else -1.0


def bootstrap_mean_interval(
    values: ArrayLike, seed: int, n: int = 2000, *, weights: ArrayLike | None = None, level: float = 0.95
) -> Interval | None:
    """Percentile bootstrap interval of a mean, or of a weighted mean, over rows drawn with replacement.

    Rows are drawn whole, with their weights, so the tokens of one text stay together. For a paired comparison give the
    differences of each row. The percentile form needs no jackknife and is defined when all values are equal.

    Args:
        values: (N,) finite numbers, one per row; of fewer than two rows there is no interval.
        seed: Seed of the draws; the same seed gives the same interval.
        n: Number of resamples.
        weights: (N,) positive numbers, such as tokens per row; all equal by default.
        level: Confidence level in (0, 1).

    Source: Efron, Annals of Statistics 7 (1979), 1-26; `scipy.stats.bootstrap`.
    """
    rows = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(rows) if weights is None else np.asarray(weights, dtype=np.float64)
    if rows.size < 2:
        return None
    found = stats.bootstrap(
        (rows * weight, weight),
        _ratio_of_sums,
        n_resamples=n,
        batch=max(1, BATCH_VALUES // rows.size),
        vectorized=True,
        paired=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def _ratio_of_sums(upper: NDArray[np.float64], lower: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = upper.sum(axis=axis) / lower.sum(axis=axis)
    return ratio


def mcnemar_power(n: int, discordant_share: float, difference: float, level: float = 0.05) -> float:
    """Probability that the exact McNemar test rejects, in the right direction.

    The number of discordant pairs is M ~ Binomial(n, d). Given M = m, the pairs that go the way of the difference are
    Binomial(m, (1 + difference / d) / 2), and the test rejects from a critical number on that depends on m only. The
    sum over all m is exact: no normal approximation at any step.

    Args:
        n: Pairs.
        discordant_share: d, probability in [0, 1] that a pair changes either way; at least `difference`.
        difference: Net change of the rate, in [0, 1].
        level: Two-sided significance level.
    """
    pairs = np.arange(n + 1)
    critical = stats.binom.isf(level / 2, pairs, 0.5)  # the largest count that is not yet significant
    towards = (1 + difference / discordant_share) / 2 if discordant_share else 0.5
    rejects = stats.binom.sf(critical, pairs, towards)
    return float(np.dot(stats.binom.pmf(pairs, n, discordant_share), rejects))


def smallest_detectable_change(
    n: int, discordant_share: float, power: float = 0.8, level: float = 0.05
) -> float | None:
    """The smallest net change of a rate that the exact McNemar test would find with the given power.

    A change up to `discordant_share` is thought of as tilting the pairs that change anyway; a larger one needs more of
    them, all in one direction. So the share of discordant pairs is max(discordant_share, change), the power grows with
    the change, and the result is where the exact power (`mcnemar_power`) reaches the wanted one.

    Args:
        n: Pairs.
        discordant_share: Share of pairs that change either way, in [0, 1]; the observed one in a comparison.
        power: Wanted probability of finding the change, in (0, 1).
        level: Two-sided significance level.

    Returns:
        A difference of rates in (0, 1]; None if n is too small to find even a change of every pair.

    Raises:
        UsageError: `discordant_share` is outside [0, 1] or n is negative.
    """
    if n < 0 or not 0 <= discordant_share <= 1:
        raise UsageError(
            f"{n} pairs with a discordant share of {discordant_share} are impossible; give a share in [0, 1]."
        )

    def shortfall(change: float) -> float:
        return power - mcnemar_power(n, max(discordant_share, change), change, level)

    if shortfall(1.0) > 0:
        return None
    return float(brentq(shortfall, 0.0, 1.0, xtol=1e-6))
