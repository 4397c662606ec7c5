"""The gap curve against angles drawn on paper, loops over pairs, and planted gaps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ballast.errors import PromptError
from ballast.locate.layers.gap_curve import RESAMPLES, Angle, GapCurve, Window, gap_curve

torch.set_num_threads(1)

ANGLES: tuple[Angle, ...] = ("angle_of_mean", "mean_of_angles")


def directions(*degrees: float, length: float = 1.0) -> torch.Tensor:
    """(1, n, 2): one layer of states in the plane."""
    angles = torch.tensor(degrees).deg2rad()
    return (length * torch.stack([angles.cos(), angles.sin()], dim=1)).unsqueeze(0)


def curve_of(*gap: float, error: float = 0.0) -> GapCurve:
    values = torch.tensor(gap, dtype=torch.float64)
    return GapCurve(values, values, values, torch.full_like(values, error))


class TestByHand:
    """Normal prompts at 0 and 60 degrees, a harmful one at 90: 60 apart, and 90 and 30."""

    def test_angle_of_the_mean_cosine(self) -> None:
        curve = gap_curve(directions(0, 60), directions(90), "angle_of_mean", 0)
        expected = math.degrees(math.acos((0 + math.sqrt(3) / 2) / 2)) - 60
        assert curve.gap.item() == pytest.approx(expected, abs=1e-4)
        assert expected == pytest.approx(4.341, abs=1e-3)

    def test_mean_of_the_angles(self) -> None:
        assert gap_curve(directions(0, 60), directions(90), "mean_of_angles", 0).gap.item() == pytest.approx(
            (90 + 30) / 2 - 60, abs=1e-4
        )

    @pytest.mark.parametrize("angle", ANGLES)
    def test_lengths_do_not_count(self, angle: Angle) -> None:
        short = gap_curve(directions(0, 60), directions(90, 10), angle, 0)
        long = gap_curve(directions(0, 60, length=7), directions(90, 10, length=0.1), angle, 0)
        assert short.gap.item() == pytest.approx(long.gap.item(), abs=1e-4)

    def test_small_angles_are_not_lost(self) -> None:
        """A hundredth of a degree, where the cosine differs from 1 by less than the precision of fp32."""
        states = [directions(degree) + 1e-12 for degree in (0, 0.01)]
        normal = torch.cat([states[0], states[0]], dim=1)
        assert gap_curve(normal, states[1], "angle_of_mean", 0).gap.item() == pytest.approx(0.01, rel=1e-3)


def slow_gap(normal: list[np.ndarray], harmful: list[np.ndarray], angle: Angle, same: list[int]) -> float:
    """One layer, pair by pair; two draws of one prompt (equal numbers in `same`) are no pair."""

    def cosine(first: np.ndarray, second: np.ndarray) -> float:
        return min(1.0, float(first @ second / np.linalg.norm(first) / np.linalg.norm(second)))

    indices = itertools.combinations(range(len(normal)), 2)
    within = [cosine(normal[i], normal[j]) for i, j in indices if same[i] != same[j]]
    between = [cosine(one, other) for one in normal for other in harmful]
    if angle == "angle_of_mean":
        return math.degrees(math.acos(np.mean(between)) - math.acos(np.mean(within)))
    return math.degrees(np.mean(np.arccos(between)) - np.mean(np.arccos(within)))


@pytest.mark.parametrize("angle", ANGLES)
def test_curve_and_band_equal_loops_over_pairs(angle: Angle) -> None:
    random = np.random.default_rng(5)
    normal, harmful = random.normal(size=(2, 4, 6)) + 1, random.normal(size=(2, 3, 6)) + 0.3
    found = gap_curve(torch.from_numpy(normal), torch.from_numpy(harmful), angle, seed=9)

    generator = np.random.default_rng(9)
    of_normal = generator.multinomial(4, [1 / 4] * 4, size=RESAMPLES)
    of_normal = of_normal[(of_normal > 0).sum(axis=1) > 1]
    of_harmful = generator.multinomial(3, [1 / 3] * 3, size=RESAMPLES)
    assert 0 < RESAMPLES - len(of_normal) < 50  # one prompt drawn four times: once in 64
    for layer in range(2):
        everyone = slow_gap(list(normal[layer]), list(harmful[layer]), angle, list(range(4)))
        assert found.gap[layer].item() == pytest.approx(everyone, rel=1e-9)
        drawn = []
        for counts, others in zip(of_normal, of_harmful[: len(of_normal)], strict=True):
            chosen = np.repeat(np.arange(4), counts)
            rows = list(normal[layer][chosen])
            drawn.append(slow_gap(rows, list(np.repeat(harmful[layer], others, axis=0)), angle, list(chosen)))
        assert found.error[layer].item() == pytest.approx(np.std(drawn, ddof=1), rel=1e-9)
        assert found.low[layer].item() == pytest.approx(np.quantile(drawn, 0.025), rel=1e-9)
        assert found.high[layer].item() == pytest.approx(np.quantile(drawn, 0.975), rel=1e-9)


def test_a_gap_planted_in_layers_3_to_5_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.zeros(32)
    common[0] = 3
    normal, harmful = (common + 0.1 * torch.randn(9, 24, 32, generator=generator) for _ in range(2))
    for layer in range(3, 9):
        harmful[layer, :, 1] += 0.8 * min(layer - 2, 3)  # grows over layers 3, 4 and 5, then stays
    curve = gap_curve(normal, harmful, "angle_of_mean", 0)
    assert curve.is_clear()
    assert curve.first_guess() == Window(3, 6)
    assert sorted(curve.increments().argsort(descending=True)[:3].tolist()) == [3, 4, 5]
    assert ((curve.low <= curve.gap) & (curve.gap <= curve.high)).all()
    flat = gap_curve(normal[:3], harmful[:3], "angle_of_mean", 0)
    assert not flat.is_clear()


def test_the_same_seed_gives_the_same_band() -> None:
    normal, harmful = directions(0, 20, 50), directions(70, 95)
    first, again, other = (gap_curve(normal, harmful, "angle_of_mean", seed) for seed in (3, 3, 4))
    assert first.error.item() == again.error.item() != other.error.item()
    assert first.gap.item() == other.gap.item()


class TestGuess:
    def test_from_a_tenth_to_nine_tenths(self) -> None:
        assert curve_of(0, 0.9, 1.1, 5, 8.9, 9.1, 10, 9, 9.5).first_guess() == Window(2, 6)

    def test_the_bounds_belong_to_it(self) -> None:
        assert curve_of(0, 1, 9, 10).first_guess() == Window(1, 3)

    def test_one_layer_can_be_all(self) -> None:
        assert curve_of(0, 0, 10, 3).first_guess() == Window(2, 3)

    def test_a_dip_below_zero_does_not_count(self) -> None:
        assert curve_of(-20, -5, 4, 10).first_guess() == Window(2, 4)


class TestClear:
    @pytest.mark.parametrize(("largest", "clear"), [(1.9, False), (2.0, True), (2.1, True)])
    def test_two_standard_errors(self, largest: float, clear: bool) -> None:
        assert curve_of(0.5, largest, -9, error=1.0).is_clear() is clear

    def test_no_gap_is_never_clear(self) -> None:
        assert not curve_of(0, -1).is_clear()


def test_increments_are_never_negative_and_begin_at_zero() -> None:
    assert curve_of(1, 3, 2, 5, -1).increments().tolist() == [1, 2, 0, 3, 0]
    assert curve_of(-2, 3).increments().tolist() == [0, 5]


def test_one_normal_prompt_has_no_pair() -> None:
    with pytest.raises(PromptError, match="at least two"):
        gap_curve(directions(0), directions(90), "angle_of_mean", 0)
