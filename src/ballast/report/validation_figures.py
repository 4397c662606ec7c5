"""The figures of a validation, from its record: curves where there are several doses, else dots."""

from __future__ import annotations

from collections.abc import Sequence

from ballast.report import formats
from ballast.report.curves import Response, dose_figure
from ballast.report.dots import Among, among_figure
from ballast.report.drawing import Figure
from ballast.validate import DoseEffect, Validation
from ballast.validate.findings import RATE, label
from ballast.validate.records import RateEffect, UtilityEffect

DOSES = {"noise": "noise (standard deviations)", "scale": "factor of the weights"}
SHARES = (-3.0, 103.0)


def family_figures(validation: Validation, number: int, doses: Sequence[DoseEffect]) -> list[Figure]:
    """All figures of one intervention: rates on every set, degenerate answers, and utility.

    Args:
        validation: The whole of it.
        number: Of the family, from 1, for the names of the figures.
        doses: The family.
    """
    margin = validation.settings["utility_margin"]
    if len(doses) == 1:
        return [
            _rate_dots(f"rates-{number}", doses[0]),
            _degenerate_dots(f"degenerate-{number}", doses[0]),
            _cost_dots(f"utility-{number}", doses[0]),
        ]
    values = [dose.dose or 0.0 for dose in doses]
    title = DOSES[doses[0].intervention]
    figures = []
    for place in range(len(_rates(doses[0]))):
        of = [_rates(dose)[place] for dose in doses]
        description = f"{_measure(doses[0], of[0]).capitalize()} on {of[0].set} over the doses"
        panels = _rate_panels(doses[0], of)
        figures.append(dose_figure(f"rates-{number}-{place + 1}", description, title, values, panels))
    for place in range(len(doses[0].utility)):
        costs = [dose.utility[place] for dose in doses]
        description = f"Ordinary answers ({costs[0].set}) over the doses"
        figures.append(
            dose_figure(f"utility-{number}-{place + 1}", description, title, values, _cost_panels(costs, margin))
        )
    return figures


def _rates(dose: DoseEffect) -> list[RateEffect]:
    return [*dose.safety, *dose.over_refusal]


def _measure(dose: DoseEffect, effect: RateEffect) -> str:
    return RATE[dose.question] if effect.axis == "safety" else "over-refusal"


def _rate_panels(dose: DoseEffect, effects: Sequence[RateEffect]) -> list[Response]:
    """The rate, and below it the share of answers that are no answers."""
    regions = [effect.region for effect in effects]
    return [
        Response(
            f"{_measure(dose, effects[0])} (%)",
            [100 * (region.rate or 0) for region in regions],
            [100 * (region.low or 0) for region in regions],
            [100 * (region.high or 0) for region in regions],
            [[100 * rate for rate in effect.random] for effect in effects],
            [100 * (effect.undisturbed.rate or 0) for effect in effects],
            bounds=SHARES,
        ),
        Response(
            "degenerate (%)",
            [100 * effect.degenerate for effect in effects],
            random=[[100 * effect.random_degenerate] for effect in effects],
            bounds=SHARES,
        ),
    ]


def _cost_panels(effects: Sequence[UtilityEffect], margin: float) -> list[Response]:
    """The likelihood of ordinary answers, and below it what the region costs beyond random ones."""
    return [
        Response(
            "nats per token",
            [effect.region for effect in effects],
            random=[effect.random for effect in effects],
            undisturbed=[effect.undisturbed for effect in effects],
        ),
        Response(
            "lost beyond random",
            [effect.excess for effect in effects],
            [effect.low for effect in effects],
            [effect.high for effect in effects],
            limit=margin,
        ),
    ]


def _rate_dots(name: str, dose: DoseEffect) -> Figure:
    rows = [
        Among(
            f"{_measure(dose, effect)}, {effect.set}",
            100 * (effect.region.rate or 0),
            100 * (effect.region.low or 0),
            100 * (effect.region.high or 0),
            [100 * rate for rate in effect.random],
            100 * (effect.undisturbed.rate or 0),
        )
        for effect in _rates(dose)
    ]
    description = f"Rates with the region and with random regions, {label(dose)}"
    return among_figure(name, description, rows, "share of answers (%)", _as_percent, bounds=SHARES)


def _degenerate_dots(name: str, dose: DoseEffect) -> Figure:
    rows = [
        Among(effect.set, 100 * effect.degenerate, None, None, [100 * effect.random_degenerate], None)
        for effect in _rates(dose)
    ]
    description = f"Degenerate answers with the region and with random regions, {label(dose)}"
    return among_figure(
        name, description, rows, "share of answers (%)", _as_percent, bounds=SHARES, drawn="random regions, mean"
    )


def _cost_dots(name: str, dose: DoseEffect) -> Figure:
    rows = [Among(effect.set, effect.region, None, None, effect.random, effect.undisturbed) for effect in dose.utility]
    description = f"Ordinary answers with the region and with random regions, {label(dose)}"
    return among_figure(name, description, rows, "nats per token", lambda value: formats.decimal(value, 3))


def _as_percent(value: float) -> str:
    return formats.percent(value / 100)
