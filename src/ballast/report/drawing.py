"""What all figures have in common: a figure as the page embeds it, its frame, its colours and its text.

Colours are names of CSS variables of the page's style sheet; whoever draws resolves `var(--name)`, so that one figure
serves light, dark and paper.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

Scale = list[list[float | str]]

HEAT: Scale = [[step / 4, f"var(--heat-{step})"] for step in range(5)]
DIVERGING: Scale = [[step / 4, f"var(--diverging-{step})"] for step in range(5)]
SERIES = 8  # colours of curves before they repeat
VALUE_MARGIN = 54  # pixels for numbers to the right of a figure
STILL = {"fixedrange": True, "showgrid": False}

_AXIS = {
    "gridcolor": "var(--rule)",
    "linecolor": "var(--rule)",
    "zerolinecolor": "var(--rule)",
    "tickcolor": "var(--rule)",
    "tickfont": {"color": "var(--muted)"},
    "title": {"font": {"color": "var(--muted)", "size": 13}, "standoff": 10},
}
_FRAME = {
    "layout": {
        "font": {"family": "var(--font)", "size": 12, "color": "var(--text)"},
        "paper_bgcolor": "var(--canvas)",
        "plot_bgcolor": "var(--canvas)",
        "hoverlabel": {
            "bgcolor": "var(--panel)",
            "bordercolor": "var(--rule)",
            "font": {"color": "var(--text)"},
            "align": "left",
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
}


@dataclass(frozen=True)
class Figure:
    """A figure as the page embeds it.

    Attributes:
        name: Its id on the page and its file name; letters, digits, `-` and `_`.
        description: What it shows, in one sentence.
        spec: Plotly's JSON, `data` and `layout`.
    """

    name: str
    description: str
    spec: dict[str, Any]


def made(
    name: str, description: str, figure: go.Figure, height: int, *, top: int = 8, right: int = 8, legend: bool = True
) -> Figure:
    """Finish a figure: size, margins and legend in pixels, and the frame that all figures share."""
    place = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    margin = {"l": 8, "r": right, "t": top, "b": 8}
    figure.update_layout(height=height, margin=margin, showlegend=legend, legend=place, template="none", dragmode=False)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    spec: dict[str, Any] = figure.to_plotly_json()
    return Figure(name, description, {"data": spec["data"], "layout": {**spec["layout"], "template": _FRAME}})


def figures_in(value: Any) -> Iterator[Figure]:
    """Every figure in the content of a page, in its order."""
    if isinstance(value, Figure):
        yield value
    elif isinstance(value, dict):
        yield from figures_in(list(value.values()))
    elif isinstance(value, list):
        for one in value:
            yield from figures_in(one)


def plain(text: str) -> str:
    """Text from an artefact for a figure: plotly reads markup, and a name is none."""
    return html.escape(text, quote=False)


def label(text: str, y: float, x: int) -> dict[str, Any]:
    """An annotation that stands on y: at the left end with x 0, at the right end with x 1."""
    place = {"x": x, "xref": "paper", "xanchor": "right" if x else "left", "y": y, "yref": "y"}
    return {"text": plain(text), "showarrow": False, "font": {"size": 13}, "yanchor": "bottom", **place}


def value_label(text: str, y: float) -> dict[str, Any]:
    """An annotation to the right of the frame, in the margin that `VALUE_MARGIN` leaves."""
    place = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 8, "y": y, "yref": "y", "yanchor": "middle"}
    return {"text": plain(text), "showarrow": False, "font": {"size": 12}, **place}


def error_bars(
    middles: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None], colour: str
) -> dict[str, Any] | None:
    """Bars from the lower to the upper ends of intervals, in the unit of the axis; None where no interval is known."""
    if None in lows or None in highs:
        return None
    above = [high - middle for high, middle in zip(highs, middles, strict=True) if high is not None]
    below = [middle - low for low, middle in zip(lows, middles, strict=True) if low is not None]
    return {"type": "data", "array": above, "arrayminus": below, "color": colour, "thickness": 2, "width": 5}
