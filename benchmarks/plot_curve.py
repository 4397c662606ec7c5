"""The picture of docs/harden.md: attack success against over-refusal along each arm of `harden_curve.py`.

Writes `docs/images/harden_curve.png`, see `picture.py`.
"""

from __future__ import annotations

import plotly.graph_objects as go
from picture import photograph
from plotly.colors import qualitative
from plotly.subplots import make_subplots
from results import FOLDER

from ballast.runs import read_json

PANELS = (
    ("jailbreakbench_harmful", "jailbreakbench_benign"),
    ("jailbreakbench_harmful", "xstest_safe"),
    ("builtin/harmful/test", "builtin/twins/test"),
)
WIDTH, HEIGHT = 1500, 620
COLOURS = (*qualitative.D3, *qualitative.Dark2)


def drawn() -> go.Figure:
    """One panel per pair of sets, one line per arm from the untuned model over its steps."""
    figure = make_subplots(cols=len(PANELS), horizontal_spacing=0.05)
    for number, path in enumerate(sorted((FOLDER / "harden").glob("*.json"))):
        points = read_json(path)["results"]["curve"]
        for column, (harmful, harmless) in enumerate(PANELS, start=1):
            trace = go.Scatter(
                x=[100 * point["over_refusal"][harmless]["rate"] for point in points],
                y=[100 * point["attack_success"][harmful]["rate"] for point in points],
                text=["", *(str(point["step"]) for point in points[1:])],
                name=path.stem,
                legendgroup=path.stem,
                showlegend=column == 1,
                mode="lines+markers+text",
                textposition="top right",
                textfont={"size": 10, "color": COLOURS[number % len(COLOURS)]},
                line={"color": COLOURS[number % len(COLOURS)], "dash": "solid" if "esi" in path.stem else "dot"},
            )
            figure.add_trace(trace, row=1, col=column)
            figure.update_xaxes(title=f"over-refusal, {harmless} (%)", range=[0, 50], row=1, col=column)
            figure.update_yaxes(title=f"attack success, {harmful} (%)", range=[0, 102], row=1, col=column)
    legend = {"orientation": "h", "y": -0.16}
    figure.update_layout(
        template="plotly_white", width=WIDTH, height=HEIGHT, margin={"t": 20, "l": 60, "r": 20}, legend=legend
    )
    return figure


if __name__ == "__main__":
    photograph(drawn(), "harden_curve")
