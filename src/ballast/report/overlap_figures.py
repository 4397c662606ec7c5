"""The figures of an overlap, from its record."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ballast.report import formats
from ballast.report.curves import Series, growth_figure
from ballast.report.dots import Limits, limits_figure
from ballast.report.drawing import STILL, Figure, made, plain
from ballast.report.heat_maps import Mark, layer_role_map, layers_height, matrix_map
from ballast.report.overlap_schema import ComparedRegion, Overlap, Pair, Part
from ballast.report.overlap_words import pair_name, shared_prompts

MOST_NAMED = 10  # pairs up to which there is room for their names
RUN_HEIGHT = 34  # pixels per region in the figure of windows


def between_figure(overlap: Overlap, names: Sequence[str]) -> Figure:
    """Every pair between its limits: whole regions, then by units and at half the prompts where it has these."""
    many = len(overlap.pairs) > MOST_NAMED
    rows = []
    for pair in overlap.pairs:
        lines = [Limits("all prompts", pair.iou, pair.chance, pair.margin_chance, pair.size_cap)]
        if pair.units:
            units = pair.units
            lines.append(Limits(f"{units.granularity}s", units.iou, units.chance, cap=units.size_cap))
        if pair.corrected:
            half = pair.corrected
            lines.append(Limits("half", half.iou, half.chance, ceiling=half.ceiling))
        rows.append((_numbers(pair) if many else pair_name(pair, names), lines))
    return limits_figure("between", "IoU of each pair between chance and what is possible", rows, beside=many)


def iou_figure(overlap: Overlap, names: Sequence[str]) -> Figure:
    """The matrix of all regions, with chance and ceiling on its colour bar."""
    chance = [100 * pair.chance for pair in overlap.pairs]
    ceilings = [100 * pair.corrected.ceiling for pair in overlap.pairs if pair.corrected]
    marks = [Mark("chance", min(chance), max(chance), "var(--muted)")]
    if ceilings:
        marks.append(Mark("ceiling", min(ceilings), max(ceilings), "var(--positive)"))
    return matrix_map(
        "iou",
        "IoU of every two regions, in per cent",
        names,
        {(pair.first, pair.second): 100 * pair.iou for pair in overlap.pairs},
        {(pair.first, pair.second): _hover(pair, names) for pair in overlap.pairs},
        marks,
        "IoU (%)",
    )


def corrected_figure(overlap: Overlap, names: Sequence[str]) -> Figure | None:
    """The matrix of corrected overlaps; None where no pair has one."""
    measured = [(pair, pair.corrected) for pair in overlap.pairs if pair.corrected]
    if not any(found.corrected is not None for _, found in measured):
        return None
    return matrix_map(
        "corrected",
        "Corrected overlap of every two regions, in per cent of the way from chance to the ceiling",
        names,
        {
            (pair.first, pair.second): None if found.corrected is None else 100 * found.corrected
            for pair, found in measured
        },
        {(pair.first, pair.second): _hover(pair, names) for pair, _ in measured},
        [Mark("chance", 0, 0, "var(--muted)"), Mark("two halves of one set", 100, 100, "var(--positive)")],
        "corrected overlap (%)",
    )


def difference_figure(overlap: Overlap, pair: Pair, names: Sequence[str]) -> Figure:
    """Where the weights of one region of a pair lie and those of the other do not."""
    first, second = (_shares(overlap.regions[place]) for place in (pair.first, pair.second))
    return layer_role_map(
        f"difference-{_numbers(pair)}",
        f"Share of the first region less that of the second, by layer and role: {pair_name(pair, names)}",
        {cell: 100 * (share - second[cell]) for cell, share in first.items()},
        "points",
        diverging=True,
    )


def parts_figure(pair: Pair, names: Sequence[str]) -> Figure:
    """The overlap of a pair within each layer and within each role, beside chance."""
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.2)
    layers = [part for part in pair.by_layer if part.iou is not None and part.layer is not None]
    roles = [part for part in pair.by_role if part.iou is not None]
    _add_parts(figure, 1, [part.layer for part in layers], layers, lines=True)
    _add_parts(figure, 2, [plain(formats.words(part.role or "")) for part in roles], roles, lines=False)
    figure.update_yaxes(title="IoU (%)", rangemode="tozero", fixedrange=True, nticks=6)
    figure.update_xaxes(fixedrange=True, zeroline=False)
    figure.update_xaxes(title="layer", row=1)
    figure.update_xaxes(tickangle=-45, showgrid=False, row=2)
    description = f"IoU by layer and by role, beside chance: {pair_name(pair, names)}"
    return made(f"parts-{_numbers(pair)}", description, figure, max(440, layers_height(len(layers))), top=34)


def agreement_figure(overlap: Overlap) -> Figure | None:
    """Weights in at least so many regions; None for two regions, of which the pair says it."""
    if len(overlap.regions) < 3 or not overlap.agreement:
        return None
    rows = overlap.agreement
    series = Series(
        "in at least so many",
        [row.at_least for row in rows],
        [row.weights for row in rows],
        chance=[row.chance for row in rows],
    )
    description = "Weights in at least so many of the regions, beside chance"
    return growth_figure("agreement", description, "regions, at least", "weights", [series], logarithmic=True)


def convergence_figure(overlap: Overlap, names: Sequence[str]) -> Figure | None:
    """How alike regions of disjoint samples are, by the size of the samples; None where that was not measured."""
    if not overlap.convergence:
        return None
    series = []
    for place, (name, rows) in enumerate(zip(names, overlap.convergence, strict=True), start=1):
        ordered = sorted(rows, key=lambda row: row.prompts)
        ious, lowest, highest, chance = (
            [100 * share for share in shares]
            for shares in zip(*((row.iou, row.lowest, row.highest, row.chance) for row in ordered), strict=True)
        )
        series.append(Series(f"{place} {name}", [row.prompts for row in ordered], ious, lowest, highest, chance))
    description = "IoU of regions from disjoint samples of one prompt set, by the size of the samples"
    return growth_figure("convergence", description, "prompts in each sample", "IoU (%)", series)


def windows_figure(overlap: Overlap, names: Sequence[str]) -> Figure | None:
    """Regions of consecutive layers, on the layers of the model; None where no pair has two of them."""
    runs: dict[int, tuple[int, int]] = {}
    for pair in overlap.pairs:
        if pair.units and pair.units.window:
            runs |= {pair.first: pair.units.window.first, pair.second: pair.units.window.second}
    if not runs:
        return None
    order = sorted(runs)
    figure = go.Figure(
        go.Bar(
            base=[runs[place][0] - 0.5 for place in order],
            x=[runs[place][1] - runs[place][0] for place in order],
            y=[f"{place + 1} {plain(names[place])}" for place in order],
            orientation="h",
            marker={"color": "var(--after)"},
            text=[formats.layers(runs[place]) for place in order],
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate="layers %{text}<extra></extra>",
        )
    )
    last = max(part.layer for part in overlap.pairs[0].by_layer if part.layer is not None)
    figure.update_xaxes(title="layer", range=[-0.5, last + 0.5], zeroline=False, fixedrange=True)
    figure.update_yaxes(type="category", autorange="reversed", ticklabelstandoff=6, **STILL)
    return made("windows", "Layers of each region", figure, 70 + RUN_HEIGHT * len(order), legend=False)


def _hover(pair: Pair, names: Sequence[str]) -> str:
    """Every number of a pair that a reader may ask for, a line each."""
    lines = [
        f"<b>{plain(pair_name(pair, names))}</b>",
        f"IoU {formats.percent(pair.iou)}",
        f"chance {formats.percent(pair.chance)}",
        f"by rows and columns {formats.percent(pair.margin_chance)}",
        f"cap {formats.percent(pair.size_cap)}",
        plain(f"p {formats.p_value(pair.p)}, corrected for all pairs {formats.p_value(pair.adjusted_p)}"),
    ]
    if pair.corrected:
        found = pair.corrected
        value = "not identifiable" if found.corrected is None else formats.percent(found.corrected)
        lines += [
            f"at half the prompts: IoU {formats.percent(found.iou)}, chance {formats.percent(found.chance)}",
            f"ceiling {formats.percent(found.ceiling)}",
            f"corrected {value} {formats.bounds(found.low, found.high)}".strip(),
        ]
    return "<br>".join([*lines, f"near-duplicate prompts: {shared_prompts(pair)}"])


def _numbers(pair: Pair) -> str:
    return f"{pair.first + 1}-{pair.second + 1}"


def _shares(region: ComparedRegion) -> dict[tuple[int | None, str], float]:
    """Of the region, by layer and role."""
    return {(cell.layer, cell.role): cell.selected / region.weights for cell in region.cells}


def _add_parts(
    figure: go.Figure, row: int, places: Sequence[int | str | None], parts: Sequence[Part], *, lines: bool
) -> None:
    """The overlap within each part, and chance behind it."""
    kinds = (
        ("chance", "chance", {"color": "var(--muted)", "dash": "dot", "width": 1.5}, "line-ew"),
        ("IoU", "iou", {"color": "var(--after)", "width": 2}, "circle"),
    )
    for title, field, line, symbol in kinds:
        figure.add_trace(
            go.Scatter(
                x=list(places),
                y=[100 * getattr(part, field) for part in parts],
                mode="lines+markers" if lines else "markers",
                line=line,
                marker={"size": 7 if lines else 11, "symbol": symbol, "line": {"width": 2, "color": line["color"]}},
                name=title,
                legendgroup=title,
                showlegend=row == 1,
                text=[
                    f"{formats.integer(part.intersection)} of {formats.integer(part.union)} weights" for part in parts
                ],
                hovertemplate=f"%{{x}}: {title} %{{y:.1f}} %, %{{text}}<extra></extra>",
            ),
            row=row,
            col=1,
        )
