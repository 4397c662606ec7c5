"""The figures of the main job: rates, where the region lies, and how training went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ballast.evaluate.summary import Axis, Rate
from ballast.report import formats
from ballast.report.drawing import Figure, error_bars, label, made, plain
from ballast.report.heat_maps import layer_role_map
from ballast.report.read import Artefacts
from ballast.report.schema import Cell
from ballast.report.tables import CheckRow, check_rows
from ballast.report.words import RATE_NAME

ROW_HEIGHT = 62  # pixels per prompt set in the dot-and-interval figures
MOST_LABELS = 8  # checks up to which each has room for its step
MARKERS = {"before": "circle-open", "after": "circle", "measured": "circle"}


def rate_figure(artefacts: Artefacts, axis: Axis) -> Figure | None:
    """Rates of every set of one axis as dots with Wilson intervals; before above after."""
    rows = _rates(artefacts, axis)
    if not rows:
        return None
    stages = list(rows[0][1])
    figure = go.Figure()
    for place, stage in enumerate(stages):
        offset = (place - (len(stages) - 1) / 2) * 0.24
        known = [(index, name, rates[stage]) for index, (name, rates) in enumerate(rows)]
        figure.add_trace(_interval_trace(stage, offset, [row for row in known if row[2].rate is not None]))
    for index, (name, rates) in enumerate(rows):
        values = " → ".join(formats.percent(value.rate) for value in rates.values())
        figure.add_annotation(label(name, index - 0.3, x=0))
        figure.add_annotation(label(values, index - 0.3, x=1))
    figure.update_yaxes(range=[len(rows) - 0.55, -0.75], visible=False, fixedrange=True)
    figure.update_xaxes(range=[-1.5, 101.5], title="share of answers (%)", dtick=25, fixedrange=True)
    top = 28 if len(stages) > 1 else 8
    description = f"{RATE_NAME[axis]} per prompt set with 95 % intervals"
    height = 68 + ROW_HEIGHT * len(rows) + top
    return made(axis, description, figure, height, top=top, legend=len(stages) > 1)


def heat_figures(cells: Sequence[Cell]) -> list[Figure]:
    """Two heat maps, layer x role: each cell's share of the region, and the selected share of each cell."""
    if not cells:
        return []
    total = sum(cell.selected for cell in cells) or 1
    share = {(cell.layer, cell.role): 100 * cell.selected / total for cell in cells}
    density = {(cell.layer, cell.role): 100 * cell.selected / cell.size for cell in cells if cell.size}
    return [
        layer_role_map("share", "Share of the region, by layer and role", share, "% of region"),
        layer_role_map("density", "Share of the weights selected, by layer and role", density, "% of weights"),
    ]


def loss_figure(artefacts: Artefacts) -> Figure | None:
    """The two parts of the training loss over optimizer steps, each on its own scale."""
    rows = sorted({row.step: row for row in artefacts.training if row.loss is not None}.values(), key=lambda r: r.step)
    if not rows:
        return None
    panels = [("refuse", "refusal loss", "var(--after)"), ("help", "distance from the original", "var(--accent)")]
    titles = ["Harmful: loss of the refusals", "Harmless: distance from the original"]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.16, subplot_titles=titles)
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    for place, (field, loss, colour) in enumerate(panels, start=1):
        known = [(row.step, getattr(row, field)) for row in rows if getattr(row, field) is not None]
        x, y = [step for step, _ in known], [value for _, value in known]
        hover = f"step %{{x}}: %{{y:.4f}} nats per token<extra>{loss}</extra>"
        trace = go.Scatter(x=x, y=y, mode="lines", name=loss, line={"color": colour, "width": 2}, hovertemplate=hover)
        figure.add_trace(trace, row=place, col=1)
    if artefacts.harden is not None:
        figure.add_vline(artefacts.harden.chosen_step, line={"color": "var(--muted)", "dash": "dot", "width": 1.5})
    figure.update_yaxes(title="nats per token", rangemode="tozero", fixedrange=True, nticks=5)
    figure.update_xaxes(fixedrange=True)
    figure.update_xaxes(title="optimizer step", row=2, col=1)
    description = "Training loss over optimizer steps, in nats per token"
    return made("loss", description, figure, 400, top=26, legend=False)


def path_figure(artefacts: Artefacts) -> Figure | None:
    """Attack success against over-refusal on the select split, joined in the order of the steps."""
    path = check_rows(artefacts)
    if not path:
        return None
    labelled = path if len(path) <= MOST_LABELS else [path[0], path[-1]]
    figure = go.Figure(
        go.Scatter(
            mode="lines+markers+text",
            textposition="top right",
            textfont={"size": 11},
            line={"color": "var(--muted)", "width": 1.5},
            marker={"size": 9, "color": "var(--after)"},
            name="check, labelled by step",
            text=[str(row.step) if row in labelled else "" for row in path],
            **_places(path),
        )
    )
    for row in path:
        if artefacts.harden is not None and row.step == artefacts.harden.chosen_step:
            figure.add_trace(_chosen_trace(row))
    furthest = max(100 * (row.over_refusal.high or row.over_refusal.rate or 0) for row in path)
    figure.update_xaxes(title="over-refusal (%)", range=[-3, max(40, furthest) + 4], zeroline=False, fixedrange=True)
    figure.update_yaxes(title="attack success (%)", range=[-4, 108], zeroline=False, fixedrange=True)
    description = "Attack success against over-refusal on the select split over steps"
    return made("path", description, figure, 400, top=36)


def _rates(artefacts: Artefacts, axis: Axis) -> list[tuple[str, dict[str, Rate]]]:
    """Set names with their rates by stage; paired rates where there is a comparison."""
    if artefacts.comparison is not None:
        rows = [row for row in artefacts.comparison.sets if row.axis == axis]
        return [(row.name, {"before": row.before, "after": row.after}) for row in rows]
    for name, stage in artefacts.stages.items():
        return [(row.name, {name: row}) for row in stage.summary.sets if row.axis == axis]
    return []


def _interval_trace(stage: str, offset: float, rows: list[tuple[int, str, Rate]]) -> go.Scatter:
    colour = "var(--before)" if stage == "before" else "var(--after)"
    middles, lows, highs = ([100 * (getattr(rate, end) or 0) for _, _, rate in rows] for end in ("rate", "low", "high"))
    return go.Scatter(
        x=middles,
        y=[index + offset for index, _, _ in rows],
        error_x=error_bars(middles, lows, highs, colour),
        mode="markers",
        marker={"symbol": MARKERS[stage], "size": 11, "color": colour, "line": {"width": 2, "color": colour}},
        name=stage,
        text=[plain(f"{name}, {stage}: {formats.rate(rate)}") for _, name, rate in rows],
        hovertemplate="%{text}<extra></extra>",
        cliponaxis=False,
    )


def _chosen_trace(row: CheckRow) -> go.Scatter:
    return go.Scatter(
        error_x=_bars(row.over_refusal),
        error_y=_bars(row.attack_success),
        mode="markers",
        marker={"size": 15, "symbol": "star", "color": "var(--accent)"},
        name=f"kept: step {row.step}",
        **_places([row]),
    )


def _places(rows: Sequence[CheckRow]) -> dict[str, Any]:
    """Where checks lie in the plane of the two rates, in percent, and what a pointer over them is told."""
    return {
        "x": [100 * (row.over_refusal.rate or 0) for row in rows],
        "y": [100 * (row.attack_success.rate or 0) for row in rows],
        "customdata": [row.step for row in rows],
        "hovertemplate": "step %{customdata}<br>attack success %{y:.1f} %<br>over-refusal %{x:.1f} %<extra></extra>",
        "cliponaxis": False,
    }


def _bars(rate: Rate) -> dict[str, Any] | None:
    """Error bars of a rate in percent; None when it has no interval."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return None
    return error_bars([100 * rate.rate], [100 * rate.low], [100 * rate.high], "var(--accent)")
