"""Ceiling and corrected overlap of synthetic regions whose truth is known: a score is truth plus noise per prompt."""

from __future__ import annotations

import numpy as np
import pytest

from ballast.errors import UsageError
from ballast.regions import Region
from ballast.regions.ceiling import Halves, ceiling_of, corrected_overlap
from tests.regions.worlds import SmallPart, region

PART = (SmallPart("a", 0, "query", (60, 50)),)
PROMPTS, SELECTED = 40, 150  # 5 % of 3,000


class World:
    """Two prompt sets whose true scores correlate by `alike`."""

    def __init__(self, alike: float, seed: int, signal: float = 0.3) -> None:
        self.generator = np.random.default_rng(seed)
        common, *own = self.generator.standard_normal((3, 3000))
        self.truths = [signal * (np.sqrt(alike) * common + np.sqrt(1 - alike) * one) for one in own]
        self.noise = self.generator.standard_normal((2, PROMPTS, 3000))

    def located(self, which: int, prompts: np.ndarray) -> Region:
        scores = self.truths[which] + self.noise[which, prompts].mean(axis=0)
        return region({"a": np.sort(np.argsort(scores)[-SELECTED:]).tolist()}, PART)

    def halves(self, which: int, splits: int, again: bool = False) -> list[Halves]:
        found = []
        for _ in range(splits):
            sides = self.generator.permutation(PROMPTS).reshape(2, -1)
            drawn = [self.generator.choice(side, len(side)) if again else side for side in sides]
            found.append(Halves(*(self.located(which, side) for side in drawn)))
        return found

    def corrected(self, splits: int = 5, resamples: int = 0):
        again = zip(self.halves(0, resamples, True), self.halves(1, resamples, True), strict=True)
        return corrected_overlap(self.halves(0, splits), self.halves(1, splits), list(again))


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_corrected_overlap_of_independent_sets_is_zero_and_of_one_truth_is_one(alike):
    found = [World(alike, seed).corrected() for seed in range(12)]
    values = [one.corrected for one in found]
    assert np.mean(values) == pytest.approx(alike, abs=0.06)
    if alike == 1:
        assert found[0].ceiling < 0.6  # the plain IoU would call one truth different
        assert found[0].iou == pytest.approx(found[0].ceiling, abs=0.08)


def test_corrected_overlap_depends_less_on_the_noise_than_the_iou_does():
    """Between 0 and 1 it still grows with the noise: by half here, where the IoU above chance halves."""
    loud, quiet, other = (
        [World(alike, seed, signal).corrected() for seed in range(8)]
        for alike, signal in ((0.6, 0.25), (0.6, 0.6), (0.3, 0.6))
    )
    above = [np.mean([one.iou - one.chance for one in found]) for found in (loud, quiet)]
    corrected = [np.mean([one.corrected for one in found]) for found in (loud, quiet, other)]
    assert above[1] > 1.8 * above[0]
    assert 1 < corrected[0] / corrected[1] < 1.7
    assert corrected[1] > 2 * corrected[2]


def test_the_interval_holds_the_truth():
    found = [World(1.0, seed).corrected(splits=4, resamples=20) for seed in range(12)]
    assert sum(one.low <= 1 <= one.high for one in found) >= 10
    assert np.mean([one.high - one.low for one in found]) < 0.6
    assert found[0].resamples == 20


def test_noise_alone_is_not_identifiable():
    found = World(1.0, 0, signal=0.0).corrected(resamples=4)
    assert (found.corrected, found.low, found.high) == (None, None, None)
    assert found.ceiling == pytest.approx(found.chance, abs=0.02)


def test_a_ceiling_by_hand():
    one, other, third = (region({"a": chosen}, PART) for chosen in ([1, 2, 3], [2, 3, 4], [9, 10, 11]))
    found = ceiling_of([Halves(one, other), Halves(one, third)], 7)
    assert (found.prompts, found.iou, found.lowest, found.highest, found.splits) == (7, 1 / 4, 0, 1 / 2, 2)
    pair = corrected_overlap([Halves(one, other)], [Halves(other, third)])
    assert pair.iou == (0 + 1) / 2  # one with third and other with other; the other two pairs would give 1 / 4
    assert pair.ceilings == (1 / 2, 0)
    assert (pair.ceiling, pair.corrected) == (0, None)


def test_what_has_no_ceiling_is_refused():
    half = Halves(*(region({"a": [1]}, PART) for _ in range(2)))
    with pytest.raises(UsageError, match="at least one split"):
        ceiling_of([])
    with pytest.raises(UsageError, match="1 and 2 splits"):
        corrected_overlap([half], [half, half])
