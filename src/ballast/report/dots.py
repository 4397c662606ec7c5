"""Dot plots of plain numbers: an overlap between its limits, and a region among random regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from ballast.report import formats
from ballast.report.drawing import VALUE_MARGIN, Figure, error_bars, label, made, plain, value_label

ROW_HEIGHT = 66  # pixels per row of a region among random ones
NAME_HEIGHT = 32  # pixels for the name over the lines of a pair
LINE_HEIGHT = 22  # pixels per line
DENSE_HEIGHT = 15  # pixels per line where there are many pairs
PAIR_GAP = 7  # pixels between such pairs
LEGEND_HEIGHT = 72
STACKED = 0.045  # of a row, by which dots on one place are moved apart
LARGEST_STACK = 8


class Limits(NamedTuple):
    """An overlap and what it is read beside, all shares in [0, 1]; None where a limit is not known.

    Attributes:
        what: What is compared, such as `all prompts`.
        iou: The overlap.
        chance: Expected at random.
        margins: Expected from the numbers per row and column.
        cap: The highest that the numbers allow.
        ceiling: That of two halves of one prompt set.
    """

    what: str
    iou: float
    chance: float
    margins: float | None = None
    cap: float | None = None
    ceiling: float | None = None


class Among(NamedTuple):
    """A region among random regions, in the unit of the axis.

    Attributes:
        name: Of the row.
        value: Of the region.
        low: Lower end of its interval; None without one.
        high: Upper end.
        random: Of each random region.
        undisturbed: Of the model as it was; None if that is not known.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    random: Sequence[float]
    undisturbed: float | None


class Placed(NamedTuple):
    """A line of a pair, and its height in the figure in pixels from above."""

    pair: str
    y: float
    limits: Limits


COMPARED = ("circle", "circle-open", "square-open", "diamond-open", "triangle-up-open")  # by its order in a pair
LIMITS = {  # field -> its name, symbol, size and colour
    "chance": ("chance", "line-ns", 14, "var(--muted)"),
    "margins": ("rows, columns", "line-ns", 14, "var(--accent)"),
    "cap": ("cap", "triangle-left", 9, "var(--muted)"),
    "ceiling": ("ceiling", "triangle-down", 10, "var(--positive)"),
}


def limits_figure(
    name: str, description: str, pairs: Sequence[tuple[str, Sequence[Limits]]], *, beside: bool = False
) -> Figure:
    """Where the overlap of each pair lies between chance and what is possible; one line for each way of comparing.

    Args:
        name: Of the figure.
        description: Of the figure.
        pairs: Names of pairs with their lines, from above.
        beside: Whether the names are short and there are many: they then stand beside the lines, not over them.
    """
    figure = go.Figure()
    placed: list[Placed] = []
    over, height = (PAIR_GAP, DENSE_HEIGHT) if beside else (NAME_HEIGHT, LINE_HEIGHT)
    tops = []
    top = 0
    for pair, lines in pairs:
        tops.append(top)
        placed += [Placed(pair, top + over + height * (number + 0.5), one) for number, one in enumerate(lines)]
        top += over + height * len(lines)
    for row in placed:
        ends = [100 * share for share in row.limits[1:] if share is not None]
        line = {"color": "var(--rule)", "width": 6}
        figure.add_shape(type="line", x0=min(ends), x1=max(ends), y0=row.y, y1=row.y, layer="below", line=line)
    for field, (title, symbol, size, colour) in LIMITS.items():
        known = [(row, share) for row in placed if (share := getattr(row.limits, field)) is not None]
        if known:
            figure.add_trace(_marks(title, known, symbol, size, colour))
    for what, symbol in zip(dict.fromkeys(row.limits.what for row in placed), COMPARED, strict=False):
        of = [(row, row.limits.iou) for row in placed if row.limits.what == what]
        figure.add_trace(_marks(f"IoU, {what}", of, symbol, 10, "var(--after)"))
    figure.update_yaxes(range=[top + PAIR_GAP, 0], visible=beside, showgrid=False, zeroline=False, fixedrange=True)
    if beside:
        middles = [start + over + height * len(lines) / 2 for start, (_, lines) in zip(tops, pairs, strict=True)]
        figure.update_yaxes(tickvals=middles, ticktext=[plain(pair) for pair, _ in pairs])
    else:
        for start, (pair, _) in zip(tops, pairs, strict=True):
            figure.add_annotation(label(pair, start + over, x=0))
    for row in placed:
        figure.add_annotation(value_label(formats.percent(row.limits.iou), row.y))
    figure.update_xaxes(title="IoU (%)", rangemode="tozero", fixedrange=True)
    finished = made(name, description, figure, top + 50 + LEGEND_HEIGHT, top=LEGEND_HEIGHT, right=VALUE_MARGIN)
    finished.spec["layout"]["legend"] |= {"entrywidth": 88, "font": {"size": 11}}  # two columns on a phone
    return finished


def among_figure(
    name: str,
    description: str,
    rows: Sequence[Among],
    unit: str,
    shown: Callable[[float], str],
    *,
    bounds: tuple[float, float] | None = None,
    drawn: str = "random regions",
) -> Figure:
    """The region among the random regions, one row per prompt set.

    Args:
        name: Of the figure.
        description: Of the figure.
        rows: From above.
        unit: Title of the axis.
        shown: A value as text.
        bounds: Ends of the axis; by the values if not given.
        drawn: What the random values are.
    """
    figure = go.Figure()
    random = [
        (value, number + offset, row.name) for number, row in enumerate(rows) for value, offset in _stacked(row.random)
    ]
    figure.add_trace(
        go.Scatter(
            x=[value for value, _, _ in random],
            y=[y for _, y, _ in random],
            mode="markers",
            marker={"size": 7, "color": "var(--before)", "opacity": 0.55},
            name=drawn,
            text=[plain(f"{name}, {drawn}: {shown(value)}") for value, _, name in random],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
    )
    known = [(number, row.undisturbed, row.name) for number, row in enumerate(rows) if row.undisturbed is not None]
    if known:
        figure.add_trace(
            go.Scatter(
                x=[value for _, value, _ in known],
                y=[number for number, _, _ in known],
                mode="markers",
                marker={"symbol": "line-ns", "size": 20, "line": {"width": 2, "color": "var(--text)"}},
                name="undisturbed",
                text=[plain(f"{name}, undisturbed: {shown(value)}") for _, value, name in known],
                hovertemplate="%{text}<extra></extra>",
                cliponaxis=False,
            )
        )
    values = [row.value for row in rows]
    figure.add_trace(
        go.Scatter(
            x=values,
            y=list(range(len(rows))),
            error_x=error_bars(values, [row.low for row in rows], [row.high for row in rows], "var(--after)"),
            mode="markers",
            marker={"size": 11, "color": "var(--after)"},
            name="the region",
            text=[plain(f"{row.name}, the region: {shown(row.value)}") for row in rows],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
    )
    for number, row in enumerate(rows):
        figure.add_annotation(label(row.name, number - 0.35, x=0))
        figure.add_annotation(value_label(shown(row.value), number))
    figure.update_yaxes(range=[len(rows) - 0.5, -0.85], visible=False, fixedrange=True)
    figure.update_xaxes(title=unit, range=bounds, fixedrange=True, zeroline=False)
    return made(name, description, figure, 102 + ROW_HEIGHT * len(rows), top=34, right=VALUE_MARGIN)


def _marks(title: str, placed: Sequence[tuple[Placed, float]], symbol: str, size: int, colour: str) -> go.Scatter:
    """One kind of mark on all lines that have it."""
    return go.Scatter(
        x=[100 * share for _, share in placed],
        y=[row.y for row, _ in placed],
        mode="markers",
        marker={"symbol": symbol, "size": size, "color": colour, "line": {"width": 2, "color": colour}},
        name=title,
        text=[plain(f"{row.pair}, {row.limits.what}: {title} {formats.percent(share)}") for row, share in placed],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )


def _stacked(values: Sequence[float]) -> list[tuple[float, float]]:
    """Values with the part of a row by which each is moved up or down, so that equal ones are all seen."""
    seen: dict[float, int] = {}
    placed = []
    for value in values:
        rank = seen[value] = seen.get(value, -1) + 1
        step = (min(rank, LARGEST_STACK) + 1) // 2
        placed.append((value, STACKED * (step if rank % 2 else -step)))
    return placed
