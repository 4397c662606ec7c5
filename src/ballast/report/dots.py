"""Dot plots of plain numbers: an overlap between its limits, and a region among random regions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    placed, tops = _placed(pairs, PAIR_GAP if beside else NAME_HEIGHT, DENSE_HEIGHT if beside else LINE_HEIGHT)
    figure = go.Figure()
    for row in placed:
        ends = [100 * share for share in row.limits[1:] if share is not None]
        line = {"color": "var(--rule)", "width": 6}
        figure.add_shape(type="line", x0=min(ends), x1=max(ends), y0=row.y, y1=row.y, layer="below", line=line)
        figure.add_annotation(value_label(formats.percent(row.limits.iou), row.y))
    for field, (title, symbol, size, colour) in LIMITS.items():
        known = [(row, share) for row in placed if (share := getattr(row.limits, field)) is not None]
        if known:
            figure.add_trace(_marks(title, known, symbol, size, colour))
    symbols = itertools.cycle(COMPARED)
    for what in dict.fromkeys(row.limits.what for row in placed):
        of = [(row, row.limits.iou) for row in placed if row.limits.what == what]
        figure.add_trace(_marks(f"IoU, {what}", of, next(symbols), 10, "var(--after)"))
    height = tops[-1]
    figure.update_yaxes(range=[height + PAIR_GAP, 0], visible=beside, showgrid=False, zeroline=False, fixedrange=True)
    if beside:
        middles = [(start + end + PAIR_GAP) / 2 for start, end in itertools.pairwise(tops)]
        figure.update_yaxes(tickvals=middles, ticktext=[plain(pair) for pair, _ in pairs])
    else:
        for start, (pair, _) in zip(tops, pairs, strict=False):  # the last top is the end
            figure.add_annotation(label(pair, start + NAME_HEIGHT, x=0))
    figure.update_xaxes(title="IoU (%)", rangemode="tozero", fixedrange=True)
    finished = made(name, description, figure, height + 50 + LEGEND_HEIGHT, top=LEGEND_HEIGHT, right=VALUE_MARGIN)
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

    def dots(title: str, found: Sequence[tuple[float, float, str]], marker: dict[str, Any]) -> go.Scatter:
        return _dots(title, [(x, y, f"{row}, {title}: {shown(x)}") for x, y, row in found], marker)

    random = [(x, place + moved, row.name) for place, row in enumerate(rows) for x, moved in _stacked(row.random)]
    still = [(row.undisturbed, place, row.name) for place, row in enumerate(rows) if row.undisturbed is not None]
    region = [(row.value, place, row.name) for place, row in enumerate(rows)]
    figure = go.Figure(dots(drawn, random, {"size": 7, "color": "var(--before)", "opacity": 0.55}))
    if still:
        tick = {"symbol": "line-ns", "size": 20, "line": {"width": 2, "color": "var(--text)"}}
        figure.add_trace(dots("undisturbed", still, tick))
    bars = error_bars(
        [row.value for row in rows], [row.low for row in rows], [row.high for row in rows], "var(--after)"
    )
    figure.add_trace(dots("the region", region, {"size": 11, "color": "var(--after)"}).update(error_x=bars))
    for place, row in enumerate(rows):
        figure.add_annotation(label(row.name, place - 0.35, x=0))
        figure.add_annotation(value_label(shown(row.value), place))
    figure.update_yaxes(range=[len(rows) - 0.5, -0.85], visible=False, fixedrange=True)
    figure.update_xaxes(title=unit, range=bounds, fixedrange=True, zeroline=False)
    return made(name, description, figure, 102 + ROW_HEIGHT * len(rows), top=34, right=VALUE_MARGIN)


def _placed(pairs: Sequence[tuple[str, Sequence[Limits]]], over: int, height: int) -> tuple[list[Placed], list[int]]:
    """All lines at their heights, and where each pair begins and the last one ends.

    Args:
        pairs: From above.
        over: Pixels over the lines of each pair.
        height: Pixels per line.
    """
    placed, tops = [], [0]
    for pair, lines in pairs:
        first = tops[-1] + over + height / 2
        placed += [Placed(pair, first + height * number, one) for number, one in enumerate(lines)]
        tops.append(tops[-1] + over + height * len(lines))
    return placed, tops


def _marks(title: str, placed: Sequence[tuple[Placed, float]], symbol: str, size: int, colour: str) -> go.Scatter:
    """One kind of mark on all lines that have it; shares in [0, 1]."""
    found = [
        (100 * share, row.y, f"{row.pair}, {row.limits.what}: {title} {formats.percent(share)}")
        for row, share in placed
    ]
    return _dots(title, found, {"symbol": symbol, "size": size, "color": colour, "line": {"width": 2, "color": colour}})


def _dots(title: str, found: Sequence[tuple[float, float, str]], marker: dict[str, Any]) -> go.Scatter:
    """Dots by x, y and what a pointer over them is told."""
    return go.Scatter(
        x=[x for x, _, _ in found],
        y=[y for _, y, _ in found],
        mode="markers",
        marker=marker,
        name=plain(title),
        text=[plain(text) for _, _, text in found],
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
