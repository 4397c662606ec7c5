"""Intervals and tests against published values, hand computation and simulation."""

from __future__ import annotations

from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ballast.errors import UsageError
from ballast.evaluate.statistics import (
    bootstrap_mean_interval,
    holm,
    mcnemar_exact,
    mcnemar_power,
    paired_difference_interval,
    rank_p,
    smallest_detectable_change,
    wilson,
)

Z = 1.959963984540054


@st.composite
def paired_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 300))
    fell = draw(st.integers(0, n))
    return fell, draw(st.integers(0, n - fell)), n


class TestWilson:
    @pytest.mark.parametrize(
        ("k", "n", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_published_values(self, k: int, n: int, low: float, high: float) -> None:
        """Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3."""
        assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)

    def test_no_trial_has_no_interval(self) -> None:
        assert wilson(0, 0) is None

    @pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2)])
    def test_impossible_counts(self, k: int, n: int) -> None:
        with pytest.raises(UsageError, match="impossible"):
            wilson(k, n)

    @given(st.integers(1, 500), st.data())
    def test_ends_solve_the_score_equation(self, n: int, data: st.DataObject) -> None:
        k = data.draw(st.integers(0, n))
        for end in wilson(k, n) or ():
            assert abs(k / n - end) == pytest.approx(Z * sqrt(max(0.0, end * (1 - end)) / n), abs=1e-7)

    def test_higher_level_is_wider(self) -> None:
        narrow, wide = wilson(5, 20, 0.8), wilson(5, 20, 0.99)
        assert narrow is not None
        assert wide is not None
        assert wide.low < narrow.low < narrow.high < wide.high


class TestMcNemar:
    def test_hand_numbers(self) -> None:
        assert mcnemar_exact(0, 0) == 1.0
        assert mcnemar_exact(0, 6) == pytest.approx(2 / 64)
        assert mcnemar_exact(1, 7) == pytest.approx(2 * (1 + 8) / 256)  # Bentur et al. (2009): published 0.0703
        assert mcnemar_exact(5, 5) == 1.0

    @given(st.integers(0, 60), st.integers(0, 60))
    def test_equals_twice_the_tail(self, b: int, c: int) -> None:
        tail = sum(comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
        assert mcnemar_exact(b, c) == pytest.approx(min(1.0, 2 * tail))
        assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


class TestPairedDifference:
    def test_published_value(self) -> None:
        """Fagerland, Lydersen and Laake (2014): airway hyper-responsiveness, 7 fell and 1 rose of 21."""
        assert paired_difference_interval(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)

    def test_no_change_still_has_a_width(self) -> None:
        """With no discordant pair the score equation is n d = z sqrt(n d (1 - d)), so d = z^2 / (n + z^2)."""
        bound = Z**2 / (50 + Z**2)
        assert paired_difference_interval(0, 0, 50) == pytest.approx((-bound, bound), abs=1e-6)

    def test_everything_changed(self) -> None:
        found = paired_difference_interval(10, 0, 10)
        assert found is not None
        assert found.low == -1
        assert -1 < found.high < 0

    def test_no_pair_has_no_interval(self) -> None:
        assert paired_difference_interval(0, 0, 0) is None

    def test_impossible_counts(self) -> None:
        with pytest.raises(UsageError, match="impossible"):
            paired_difference_interval(3, 3, 5)

    @given(paired_counts())
    def test_contains_the_estimate_and_mirrors(self, counts: tuple[int, int, int]) -> None:
        fell, rose, n = counts
        found, mirrored = paired_difference_interval(fell, rose, n), paired_difference_interval(rose, fell, n)
        assert found is not None
        assert mirrored is not None
        assert -1 <= found.low <= (rose - fell) / n <= found.high <= 1
        assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-9)

    @given(paired_counts())
    def test_excludes_zero_where_the_score_test_rejects(self, counts: tuple[int, int, int]) -> None:
        fell, rose, n = counts
        found = paired_difference_interval(fell, rose, n)
        assert found is not None
        statistic = abs(rose - fell) / sqrt(rose + fell) if rose + fell else 0.0
        if abs(statistic - Z) > 1e-6:
            assert (found.low > 0 or found.high < 0) == (statistic > Z)

    def test_coverage(self) -> None:
        """The true difference lies inside in about 95 % of samples, even with few discordant pairs."""
        n, p_fell, p_rose = 60, 0.02, 0.10
        draws = np.random.default_rng(1).multinomial(n, [p_fell, p_rose, 1 - p_fell - p_rose], size=1500)
        tables, times = np.unique(draws[:, :2], axis=0, return_counts=True)
        covered = 0
        for (fell, rose), count in zip(tables.tolist(), times.tolist(), strict=True):
            found = paired_difference_interval(fell, rose, n)
            assert found is not None
            covered += count * (found.low <= p_rose - p_fell <= found.high)
        assert 0.93 <= covered / 1500 <= 0.98


class TestBootstrap:
    def test_agrees_with_the_normal_interval(self) -> None:
        values = np.random.default_rng(3).normal(2.0, 1.0, size=400)
        half = Z * values.std() / 20
        found = bootstrap_mean_interval(values, seed=0)
        assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)

    def test_weights_equal_repeated_tokens(self) -> None:
        """Resampling rows: the brute-force twin draws whole rows and averages their tokens."""
        values, weights = np.array([1.0, 2.0, 6.0, 3.0]), np.array([10.0, 1.0, 3.0, 2.0])
        drawn = np.random.default_rng(5).integers(0, 4, size=(20000, 4))
        means = (values[drawn] * weights[drawn]).sum(1) / weights[drawn].sum(1)
        found = bootstrap_mean_interval(values, seed=0, n=20000, weights=weights)
        assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.06)

    def test_same_seed_same_interval_whatever_the_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.random.default_rng(0).normal(size=50)
        first = bootstrap_mean_interval(values, seed=7)
        assert bootstrap_mean_interval(values, seed=7) == first
        assert bootstrap_mean_interval(values, seed=8) != first
        monkeypatch.setattr("ballast.evaluate.statistics.BATCH_VALUES", 64)
        assert bootstrap_mean_interval(values, seed=7) == pytest.approx(first)

    def test_degenerate_input(self) -> None:
        assert bootstrap_mean_interval([], seed=0) is None
        assert bootstrap_mean_interval([1.5], seed=0) is None
        assert bootstrap_mean_interval([2.0, 2.0, 2.0], seed=0) == pytest.approx((2.0, 2.0))


class TestSmallestDetectableChange:
    def test_hand_number(self) -> None:
        """Six of six pairs must move (2 / 64 < 0.05 < 2 / 32), so power is d^6 and 0.8 = d^6."""
        assert smallest_detectable_change(6, 0.0) == pytest.approx(0.8 ** (1 / 6), abs=1e-4)

    def test_one_way_changes_need_six(self) -> None:
        """If no pair changes by chance, the test finds a change when at least six pairs move."""
        change = smallest_detectable_change(200, 0.0)
        assert change is not None
        assert stats.binom.sf(5, 200, change) == pytest.approx(0.8, abs=1e-3)

    @pytest.mark.parametrize(("n", "share"), [(60, 0.2), (100, 0.0), (40, 0.9)])
    def test_simulated_power(self, n: int, share: float) -> None:
        change = smallest_detectable_change(n, share)
        assert change is not None
        discordant = max(share, change)
        probabilities = [(discordant + change) / 2, (discordant - change) / 2, 1 - discordant]
        draws = np.random.default_rng(0).multinomial(n, np.maximum(probabilities, 0), size=20000)
        tables, times = np.unique(draws[:, :2], axis=0, return_counts=True)
        found = sum(
            count
            for (rose, fell), count in zip(tables.tolist(), times.tolist(), strict=True)
            if rose > fell and mcnemar_exact(fell, rose) <= 0.05
        )
        assert found / 20000 == pytest.approx(0.8, abs=0.012)

    @given(st.integers(6, 150), st.integers(0, 6))
    def test_is_the_smallest(self, n: int, sixths: int) -> None:
        share = sixths / 6
        change = smallest_detectable_change(n, share)
        assert change is not None
        less = max(0.0, change - 1e-4)
        assert mcnemar_power(n, max(share, less), less) < 0.8

    def test_more_pairs_find_less(self) -> None:
        changes = [smallest_detectable_change(n, 0.1) or 0 for n in (30, 100, 300, 1000)]
        assert changes == sorted(changes, reverse=True)

    def test_too_few_pairs(self) -> None:
        assert smallest_detectable_change(0, 0.0) is None
        assert smallest_detectable_change(5, 1.0) is None

    def test_impossible_share(self) -> None:
        with pytest.raises(UsageError, match="share"):
            smallest_detectable_change(10, 1.5)


class TestHolm:
    def test_by_hand(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.04, 0.03, 0.6]) == pytest.approx([0.09, 0.09, 0.6])
        assert holm([0.5, 0.5]) == [1.0, 1.0]
        assert holm([0.02]) == [0.02]
        assert holm([]) == []

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
    def test_rejects_what_the_steps_reject(self, p_values: list[float], level: float) -> None:
        """Holm's own words: reject the smallest p while it is at most level / (tests that are left)."""
        rejected: set[int] = set()
        for place in sorted(range(len(p_values)), key=p_values.__getitem__):
            if (len(p_values) - len(rejected)) * p_values[place] > level:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(p_values)) if p <= level} == rejected


class TestRankP:
    def test_by_hand(self) -> None:
        assert rank_p(3, [1, 2, 2.5]) == 1 / 4
        assert rank_p(2, [1, 2, 3]) == 3 / 4  # a tie counts against it
        assert rank_p(0, [1, 2, 3]) == 1
        assert rank_p(1, []) == 1

    def test_keeps_its_level_when_the_value_is_one_more_draw(self) -> None:
        draws = np.random.default_rng(0).integers(0, 30, (4000, 20))
        found = np.array([rank_p(row[0], row[1:].tolist()) for row in draws])
        assert (found <= 0.05).mean() <= 0.05 + 3 * sqrt(0.05 * 0.95 / 4000)
        assert (found <= 0.05).mean() > 0.02  # ties make it conservative, not useless
