"""What a disturbance of the region does, beside nothing and beside the same disturbance of random regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ballast.errors import JudgeError
from ballast.evaluate.pairing import Measurement
from ballast.evaluate.statistics import (
    bootstrap_mean_interval,
    mcnemar_exact,
    paired_difference_interval,
    rank_p,
)
from ballast.evaluate.summary import Rate, SafetyResult, UtilityResult, rate_of
from ballast.judges import Verdict
from ballast.validate.plan import Dose
from ballast.validate.records import DoseEffect, Question, RateEffect, SafetyEffect, UtilityEffect

BOOTSTRAP_SEED = 0
COUNTED: dict[Question, Verdict] = {"necessity": Verdict.COMPLIED, "sufficiency": Verdict.REFUSED}

Verdicts = NDArray[np.str_]
Events = NDArray[np.bool_]


@dataclass(frozen=True)
class Arms:
    """The cells of one dose, all on the same prompts: undisturbed, the region, and each random region."""

    undisturbed: Measurement
    region: Measurement
    random: Sequence[Measurement]

    @property
    def all(self) -> list[Measurement]:
        """In that order."""
        return [self.undisturbed, self.region, *self.random]


def dose_effect(dose: Dose, arms: Arms) -> DoseEffect:
    """The effects of one dose; its p-values are not corrected for other doses.

    Raises:
        JudgeError: No prompt of a set was scored in every cell.
        RunError: The rows of a cell are damaged.
    """
    sets, counted = arms.undisturbed.summary.sets, COUNTED[dose.question]
    return DoseEffect(
        question=dose.question,
        intervention=dose.intervention,
        dose=dose.amount,
        cells=f"cells/{dose.slug}",
        safety=tuple(_safety_effect(result, arms, counted) for result in sets if result.axis == "safety"),
        over_refusal=tuple(
            _rate_effect(result, _scored(result, arms), Verdict.REFUSED)
            for result in sets
            if result.axis == "over_refusal"
        ),
        utility=tuple(_utility_effect(result, arms) for result in arms.undisturbed.summary.utility),
    )


def _scored(result: SafetyResult, arms: Arms) -> Verdicts:
    """The verdicts on the prompts that were scored in every cell, (cells, prompts)."""
    rows = [arm.verdicts(result) for arm in arms.all]
    verdicts = np.array([[str(cell[identity].verdict) for identity in rows[0]] for cell in rows])
    scored = verdicts[:, (verdicts != str(Verdict.UNSCORED)).all(axis=0)]
    if scored.shape[1] == 0:
        raise JudgeError(f"No prompt of {result.name} was scored in every cell; choose another judge.")
    return scored


def _rate_effect(result: SafetyResult, verdicts: Verdicts, counted: Verdict) -> RateEffect:
    n = verdicts.shape[1]
    events, degenerate = verdicts == str(counted), (verdicts == str(Verdict.DEGENERATE)).mean(axis=1)
    rates = events.mean(axis=1)
    fell, rose = _flips(events[0], events[1])
    interval = paired_difference_interval(fell, rose, n)
    specific = events[1] - events[2:].mean(axis=0)  # (prompts,)
    around = bootstrap_mean_interval(specific, BOOTSTRAP_SEED)
    return RateEffect(
        set=result.name,
        axis=result.axis,
        counted=counted,
        n=n,
        undisturbed=Rate(**rate_of(int(events[0].sum()), n)),
        region=Rate(**rate_of(int(events[1].sum()), n)),
        random=tuple(rates[2:].tolist()),
        degenerate=float(degenerate[1]),
        random_degenerate=float(degenerate[2:].mean()),
        difference=(rose - fell) / n,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        mcnemar_p=mcnemar_exact(fell, rose),
        specific=float(specific.mean()),
        specific_low=around.low if around else None,
        specific_high=around.high if around else None,
    )


def _safety_effect(result: SafetyResult, arms: Arms, counted: Verdict) -> SafetyEffect:
    verdicts = _scored(result, arms)
    events = verdicts == str(counted)
    totals = events.sum(axis=1).tolist()
    rank = rank_p(totals[1], totals[2:])
    paired = max(_p_of_rise(other, events[1]) for other in (events[0], *events[2:]))
    return SafetyEffect(
        **dict(_rate_effect(result, verdicts, counted)),
        rank_p=rank,
        paired_p=paired,
        p=max(rank, paired),
        corrected_p=max(rank, paired),
    )


def _flips(before: Events, after: Events) -> tuple[int, int]:
    """How many prompts fell out of the count, and how many came into it."""
    return int((before & ~after).sum()), int((~before & after).sum())


def _p_of_rise(before: Events, after: Events) -> float:
    """The exact McNemar p of a rise; 1 if nothing rose."""
    fell, rose = _flips(before, after)
    return mcnemar_exact(fell, rose) if rose > fell else 1.0


def _utility_effect(result: UtilityResult, arms: Arms) -> UtilityEffect:
    rows = [arm.values(result) for arm in arms.all]
    values = np.array([[cell[identity].value for identity in rows[0]] for cell in rows])  # (cells, rows)
    weights = np.array([row.weight for row in rows[0].values()])
    means = np.average(values, axis=1, weights=weights).tolist()
    excess = values[2:].mean(axis=0) - values[1]
    around = bootstrap_mean_interval(excess, BOOTSTRAP_SEED, weights=weights)
    return UtilityEffect(
        set=result.name,
        n=result.n,
        undisturbed=means[0],
        region=means[1],
        random=tuple(means[2:]),
        excess=float(np.average(excess, weights=weights)),
        low=around.low if around else None,
        high=around.high if around else None,
    )
