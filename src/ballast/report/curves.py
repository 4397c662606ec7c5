"""Curves of plain numbers: what a dose does, and how a number grows with prompts or with regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ballast.report.drawing import SERIES, Figure, error_bars, made, plain

PANEL_HEIGHT = 110  # pixels per panel of a dose-response figure; the first one takes two
LEGEND_LINE = 19  # pixels per line of a legend, of which each has two names
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


class Response(NamedTuple):
    """One number over the doses, in the unit of its axis.

    Attributes:
        unit: Title of the axis.
        region: With the region disturbed, per dose.
        low: Lower ends of its intervals; empty without intervals.
        high: Upper ends.
        random: Of the random regions, per dose; one number per dose is their mean.
        undisturbed: Without a disturbance, per dose; empty if that is not known.
        limit: A line that decides a verdict.
        bounds: Ends of the axis; by the values if not given.
    """

    unit: str
    region: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    random: Sequence[Sequence[float]] = ()
    undisturbed: Sequence[float] = ()
    limit: float | None = None
    bounds: tuple[float, float] | None = None


class Series(NamedTuple):
    """One curve with its ranges and its chance level.

    Attributes:
        name: In the legend.
        x: Places.
        y: Values.
        low: Lower ends of the bars; empty for none.
        high: Upper ends.
        chance: Values expected at random.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    chance: Sequence[float] = ()


def dose_figure(name: str, description: str, dose: str, doses: Sequence[float], panels: Sequence[Response]) -> Figure:
    """Responses one above the other over the same doses.

    Args:
        name: Of the figure.
        description: Of the figure.
        dose: Title of the axis of doses.
        doses: In any order.
        panels: From above.
    """
    order = sorted(range(len(doses)), key=lambda place: doses[place])
    places = [doses[place] for place in order]
    heights = [2, *[1] * (len(panels) - 1)]
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.09, row_heights=heights)
    for row, panel in enumerate(panels, start=1):
        for trace in _response(places, panel, order, first=row == 1):
            figure.add_trace(trace, row=row, col=1)
        if panel.limit is not None:
            figure.add_hline(panel.limit, line={"color": "var(--accent)", "dash": "dot", "width": 1.5}, row=row, col=1)
        figure.update_yaxes(title=panel.unit, range=panel.bounds, zeroline=False, fixedrange=True, row=row)
        figure.update_yaxes(nticks=6 if row == 1 else 3, row=row)
    figure.update_xaxes(fixedrange=True, zeroline=False, tickvals=places)
    figure.update_xaxes(title=dose, row=len(panels), col=1)
    return made(name, description, figure, 76 + PANEL_HEIGHT * sum(heights), top=52)


def growth_figure(
    name: str, description: str, x: str, y: str, series: Sequence[Series], *, logarithmic: bool = False
) -> Figure:
    """Curves with ranges, each beside its chance level.

    Args:
        name: Of the figure.
        description: Of the figure.
        x: Title of the axis.
        y: Title of the axis.
        series: In the order of the legend.
        logarithmic: Whether y is counted in powers of ten; the axis then begins below 1.
    """
    figure = go.Figure()
    for number, one in enumerate(series):
        colour = f"var(--series-{number % SERIES})"
        figure.add_trace(
            go.Scatter(
                x=list(one.x),
                y=[value or None for value in one.y] if logarithmic else list(one.y),
                error_y=error_bars(one.y, one.low, one.high, colour) if one.low else None,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 8, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                name=plain(one.name),
                hovertemplate="%{x}: %{y:,.6~g}<extra>%{fullData.name}</extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=list(one.x),
                y=[value or None for value in one.chance] if logarithmic else list(one.chance),
                mode="lines",
                line={"color": colour, "width": 2, "dash": "dot"},
                name="chance",
                legendgroup="chance",
                legendrank=2000,  # last
                showlegend=number == 0,
                hovertemplate="%{x}: %{y:,.4~g}<extra>chance</extra>",
            )
        )
    figure.update_xaxes(title=x, tickvals=sorted({place for one in series for place in one.x}), fixedrange=True)
    figure.update_yaxes(title=y, rangemode="tozero", fixedrange=True)
    if logarithmic:
        most = max(max(one.y) for one in series)
        figure.update_yaxes(type="log", range=[-0.5, len(str(int(most)))], dtick=1, tickformat=",")
    legend = 22 + LEGEND_LINE * (1 + len(series) // 2)
    return made(name, description, figure, 320 + legend, top=legend)


def _response(places: Sequence[float], panel: Response, order: Sequence[int], *, first: bool) -> list[go.Scatter]:
    """Band, mean, undisturbed and region, the later ones in front; the first panel has the legend."""

    def line(name: str, y: Sequence[float], hover: str, **more: Any) -> go.Scatter:
        return go.Scatter(
            x=list(places), y=[y[place] for place in order], name=name, legendgroup=name, hovertemplate=hover, **more
        )

    said = "dose %{x}: %{y:.4~g}<extra>%{fullData.name}</extra>"
    traces = []
    if any(len(values) > 1 for values in panel.random):
        smallest, largest = ([end(values) for values in panel.random] for end in (min, max))
        edge = {"mode": "lines", "line": {"width": 0, "color": "var(--before)"}, "showlegend": False}
        traces.append(line("smallest random", smallest, said, **edge))
        edge |= {"fill": "tonexty", "fillcolor": "var(--band)", "showlegend": first}
        traces.append(line("random, smallest to largest", largest, said, **edge))
    if panel.random:
        means = [sum(values) / len(values) for values in panel.random]
        dashed = {"mode": "lines+markers", "line": {"dash": "dash", "width": 2, "color": "var(--before)"}}
        traces.append(line("random, mean", means, said, marker={"size": 6}, showlegend=first, **dashed))
    if panel.undisturbed:
        thin = {"mode": "lines", "line": {"width": 1.5, "color": "var(--text)", "dash": "dot"}}
        traces.append(line("undisturbed", panel.undisturbed, said, showlegend=first, **thin))
    bars = None
    if panel.low:
        lows, highs = ([side[place] for place in order] for side in (panel.low, panel.high))
        bars = error_bars([panel.region[place] for place in order], lows, highs, "var(--after)")
    traces.append(
        line(
            "the region",
            panel.region,
            said,
            mode="lines+markers",
            line={"width": 2.5, "color": "var(--after)"},
            marker={"size": 9},
            error_y=bars,
            showlegend=first,
        )
    )
    return traces
