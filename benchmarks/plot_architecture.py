"""The pictures of docs/architecture.md: where the mass of the scores and the regions of `architecture.py` lie.

Writes `docs/images/architecture_MODEL.png`, see `picture.py`.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from picture import photograph
from plotly.subplots import make_subplots
from results import FOLDER

from ballast.runs import read_json

ROLES = ("query", "key", "value", "output", "gate", "up", "gate_up", "down")
WIDTH, HEIGHT = 1200, 760


def drawn(found: dict[str, dict[str, Any]]) -> go.Figure:
    """Two rows of heat maps, one column per method; layers from below, in per cent of the whole."""
    methods = list(found)
    titles = [f"{method}: {what}" for what in ("share of the scores", "share of the top 1 %") for method in methods]
    figure = make_subplots(rows=2, cols=len(methods), subplot_titles=titles, vertical_spacing=0.1)
    for row, (kind, key) in enumerate((("mass", "mass"), ("region", "selected")), start=1):
        for column, method in enumerate(methods, start=1):
            table = shares(found[method][kind], key)
            roles = sorted({role for _, role in table}, key=lambda role: ROLES.index(role.rpartition(".")[2]))
            layers = sorted({layer for layer, _ in table})
            heat = go.Heatmap(
                z=[[table[layer, role] for role in roles] for layer in layers],
                x=[role.rpartition(".")[2] for role in roles],
                y=layers,
                colorscale="Viridis",
                showscale=False,
                text=[
                    [f"{value:.1f}" if value >= 1 else "" for value in line]
                    for line in ([table[layer, role] for role in roles] for layer in layers)
                ],
                texttemplate="%{text}",
                textfont={"size": 8},
            )
            figure.add_trace(heat, row=row, col=column)
    figure.update_layout(
        template="plotly_white", width=WIDTH, height=HEIGHT, margin={"t": 30, "l": 40, "r": 20, "b": 40}
    )
    return figure


def shares(cells: list[dict[str, Any]], key: str) -> dict[tuple[int, str], float]:
    """Per cent of the whole by layer and role."""
    total = sum(cell[key] for cell in cells)
    return {(cell["layer"], cell["role"]): 100 * cell[key] / total for cell in cells}


if __name__ == "__main__":
    for path in sorted((FOLDER / "architecture").glob("*.json")):
        photograph(drawn(read_json(path)["results"]), f"architecture_{path.stem}")
