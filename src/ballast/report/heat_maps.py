"""Heat maps of plain numbers: a value per layer and role, and a value per pair of regions with marks on its colour bar.

Values are in the unit of the colour bar, which is per cent wherever the page uses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from ballast.report import formats
from ballast.report.drawing import DIVERGING, HEAT, STILL, Figure, made, plain

LAYER_HEIGHT = 15  # pixels per layer
CELL_HEIGHTS = (22, 44)  # pixels per region in a matrix: at least, at most
MATRIX_HEIGHT = 360  # pixels that a matrix takes if its cells may be that high
MOST_DECIMALS = 6  # regions up to which a cell of a matrix has room for a decimal
MARK_HEIGHT = 27  # pixels per mark over the colour bar: its bracket and its name
BAR_HEIGHT = 12
STEPS = 60  # colours in the bar under a matrix


class Mark(NamedTuple):
    """A range that matters on a colour scale, such as the chance levels of all pairs; one value has two equal ends."""

    name: str
    low: float
    high: float
    colour: str


def layer_role_map(
    name: str, description: str, values: Mapping[tuple[int | None, str], float], unit: str, *, diverging: bool = False
) -> Figure:
    """A value per layer and role; cells without one stay empty, layer 0 is at the top as text flows through the model.

    Args:
        name: Of the figure.
        description: Of the figure.
        values: By layer, None outside of the layer stack, and role.
        unit: Of the values.
        diverging: Whether they lie on both sides of 0.
    """
    layers = sorted({layer for layer, _ in values}, key=lambda layer: -1 if layer is None else layer)
    roles = list(dict.fromkeys(role for _, role in sorted(values, key=lambda cell: cell[0] is not None)))
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 12, "outlinewidth": 0, "ticksuffix": ""}
    furthest = max((abs(value) for value in values.values()), default=0) or 1
    figure = go.Figure(
        go.Heatmap(
            z=[[values.get((layer, role)) for role in roles] for layer in layers],
            x=[plain(formats.words(role)) for role in roles],
            y=["–" if layer is None else str(layer) for layer in layers],
            colorscale=DIVERGING if diverging else HEAT,
            zmin=-furthest if diverging else 0,
            zmax=furthest if diverging else None,
            colorbar=bar,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate=f"layer %{{y}}, %{{x}}: %{{z:{'+' if diverging else ''}.3f}} {unit}<extra></extra>",
        )
    )
    figure.update_yaxes(title="layer", type="category", autorange="reversed", nticks=16, **STILL)
    figure.update_xaxes(tickangle=-45, **STILL)
    return made(name, description, figure, layers_height(len(layers)), legend=False)


def layers_height(layers: int) -> int:
    """The height of a map of so many layers, in pixels; of a figure that stands beside one, too."""
    return min(1100, 120 + LAYER_HEIGHT * max(6, layers))


def matrix_map(
    name: str,
    description: str,
    labels: Sequence[str],
    values: Mapping[tuple[int, int], float | None],
    hovers: Mapping[tuple[int, int], str],
    marks: Sequence[Mark],
    unit: str,
) -> Figure:
    """A symmetric matrix of regions with the numbers in its cells, over a colour bar on which limits are marked.

    Rows are named and columns are numbered, so that ten regions fit a phone and a column of a paper.

    Args:
        name: Of the figure.
        description: Of the figure.
        labels: Names of the regions.
        values: By the positions of a pair; None where there is no number. The diagonal stays empty.
        hovers: What a pointer over a pair is told; plotly's markup.
        marks: Limits.
        unit: Of the values.
    """
    count = len(labels)
    known = [value for value in values.values() if value is not None]
    lowest = min([0.0, *known])
    highest = max([*known, *(mark.high for mark in marks)]) * 1.04 or 1.0
    cell = max(CELL_HEIGHTS[0], min(CELL_HEIGHTS[1], MATRIX_HEIGHT // count))
    gap = 8 + MARK_HEIGHT * len(marks)
    drawn = count * cell + gap + BAR_HEIGHT
    figure = go.Figure([_cells(labels, values, hovers, (lowest, highest)), _colour_bar(lowest, highest)])
    figure.update_xaxes(side="top", type="category", ticklen=0, **STILL)
    figure.update_yaxes(type="category", autorange="reversed", domain=[(gap + BAR_HEIGHT) / drawn, 1], **STILL)
    figure.update_layout(
        xaxis2={"anchor": "y2", "side": "bottom", "title": unit, "range": [lowest, highest], "nticks": 7, **STILL},
        yaxis2={"anchor": "x2", "domain": [0, BAR_HEIGHT / drawn], "visible": False, **STILL},
    )
    for number, mark in enumerate(marks):
        _draw_mark(figure, mark, (BAR_HEIGHT + 6 + MARK_HEIGHT * (len(marks) - 1 - number)) / drawn, highest)
    return made(name, description, figure, drawn + 80, legend=False)


def _cells(
    labels: Sequence[str],
    values: Mapping[tuple[int, int], float | None],
    hovers: Mapping[tuple[int, int], str],
    bounds: tuple[float, float],
) -> go.Heatmap:
    places = range(len(labels))

    def symmetric(found: Mapping[tuple[int, int], Any], diagonal: str | None) -> list[list[Any]]:
        return [[found.get((min(row, column), max(row, column)), diagonal) for column in places] for row in places]

    digits = 1 if len(labels) <= MOST_DECIMALS else 0
    shown = {pair: "–" if value is None else formats.decimal(value, digits) for pair, value in values.items()}
    return go.Heatmap(
        z=symmetric(values, None),
        x=[str(place + 1) for place in places],
        y=[f"{place} {plain(name)}" for place, name in enumerate(labels, start=1)],
        text=symmetric(shown, ""),
        texttemplate="%{text}",
        customdata=symmetric(hovers, ""),
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale=HEAT,
        zmin=bounds[0],
        zmax=bounds[1],
        showscale=False,
        xgap=2,
        ygap=2,
    )


def _colour_bar(lowest: float, highest: float) -> go.Heatmap:
    """The bar as a heat map of its own, since marks have to lie on its scale."""
    steps = [lowest + (highest - lowest) * (step + 0.5) / STEPS for step in range(STEPS)]
    return go.Heatmap(
        z=[steps], x=steps, y=[0], xaxis="x2", yaxis="y2", colorscale=HEAT, showscale=False, hoverinfo="skip"
    )


def _draw_mark(figure: go.Figure, mark: Mark, height: float, highest: float) -> None:
    """A bracket that comes down to the bar at the ends of the range, and its name over it."""
    line = {"color": mark.colour, "width": 2}
    place = {"xref": "x2", "yref": "paper", "line": line}
    for end in {mark.low, mark.high}:
        figure.add_shape(type="line", x0=end, x1=end, y0=0, y1=height, **place)
    figure.add_shape(type="line", x0=mark.low, x1=mark.high, y0=height, y1=height, **place)
    right = mark.low + mark.high > highest  # in the right half a name goes to the left, so that it fits
    ends = dict.fromkeys(formats.decimal(end) for end in (mark.low, mark.high))
    figure.add_annotation(
        text=f"{mark.name} {'–'.join(ends)}",
        x=mark.high if right else mark.low,
        y=height,
        xref="x2",
        yref="paper",
        xanchor="right" if right else "left",
        yanchor="bottom",
        showarrow=False,
        font={"size": 12, "color": mark.colour},
    )
