from __future__ import annotations

from pathlib import Path

import pytest

from ballast.report import figures
from ballast.report.read import gather
from ballast.report.schema import Cell
from ballast.report.tables import by_role, check_rows, verdict_rows
from ballast.runs import read_json, write_json
from tests.report.artefacts import make_measurement, make_run, make_training

CELLS = [
    Cell(layer=None, role="embedding", selected=10, size=1000),
    Cell(layer=0, role="query", selected=30, size=100),
    Cell(layer=1, role="query", selected=0, size=100),
    Cell(layer=1, role="down", selected=60, size=200),
]


def test_heat_maps_show_share_and_density() -> None:
    share, density = (figure.spec["data"][0] for figure in figures.heat_figures(CELLS))
    assert list(share["x"]) == ["embedding", "query", "down"]
    assert list(share["y"]) == ["–", "0", "1"]
    assert [list(row) for row in share["z"]] == [[10, None, None], [None, 30, None], [None, 0, 60]]
    assert [list(row) for row in density["z"]] == [[1, None, None], [None, 30, None], [None, 0, 30]]


def test_a_region_without_cells_has_no_map() -> None:
    assert figures.heat_figures([]) == []


def test_roles_are_sums_over_layers() -> None:
    rows = {row.role: (row.selected, row.size, row.share, row.density) for row in by_role(CELLS)}
    assert rows == {"down": (60, 200, 0.6, 0.3), "query": (30, 200, 0.3, 0.15), "embedding": (10, 1000, 0.1, 0.01)}
    assert [row.role for row in by_role(CELLS)] == ["down", "query", "embedding"]


def test_rates_keep_the_two_axes_apart(tmp_path: Path) -> None:
    found = gather(make_run(tmp_path))
    sets = read_json(tmp_path / "comparison.json")["sets"]
    for axis in ("safety", "over_refusal"):
        figure = figures.rate_figure(found, axis)
        assert figure is not None
        assert [trace["name"] for trace in figure.spec["data"]] == ["before", "after"]
        for trace in figure.spec["data"]:
            rows = [row[trace["name"]] for row in sets if row["axis"] == axis]
            assert trace["x"] == pytest.approx([100 * row["rate"] for row in rows])
            ends = zip(trace["x"], trace["error_x"]["arrayminus"], trace["error_x"]["array"], strict=True)
            bounds = [(x - below, x + above) for x, below, above in ends]
            wanted = [(100 * row["low"], 100 * row["high"]) for row in rows]
            assert [low for low, _ in bounds] == pytest.approx([low for low, _ in wanted], abs=1e-9)
            assert [high for _, high in bounds] == pytest.approx([high for _, high in wanted], abs=1e-9)


def test_one_measurement_has_one_dot_per_set(tmp_path: Path) -> None:
    figure = figures.rate_figure(gather(make_measurement(tmp_path)), "safety")
    assert figure is not None
    assert [len(trace["x"]) for trace in figure.spec["data"]] == [3]


def test_the_kept_check_has_wilson_bars(tmp_path: Path) -> None:
    found = gather(make_training(tmp_path))
    figure = figures.path_figure(found)
    assert figure is not None
    path, kept = figure.spec["data"]
    assert list(path["text"]) == ["20", "40", "60", "80", "100"]
    assert (kept["x"][0], kept["y"][0]) == pytest.approx((100 * 2 / 48, 25.0))
    # Wilson, k=12, n=48, z=1.959964: centre (12 + z²/2)/(48 + z²) = 0.268525, half width 0.119319
    row = check_rows(found)[2]
    assert (row.attack_success.low, row.attack_success.high) == pytest.approx((0.149206, 0.387844), abs=2e-6)
    assert kept["error_y"]["array"][0] == pytest.approx(13.7844, abs=2e-4)


def test_many_checks_are_labelled_at_their_ends(tmp_path: Path) -> None:
    make_training(tmp_path)
    harden = read_json(tmp_path / "harden.json")
    rates = {"attack_success_rate": 0.5, "over_refusal": 0.1, "n_harmful": 48, "n_harmless": 48}
    harden["selection"] += [{"step": step, **rates} for step in (1, 2, 3, 4)]
    write_json(tmp_path / "harden.json", harden)
    figure = figures.path_figure(gather(tmp_path))
    assert figure is not None
    path = figure.spec["data"][0]
    assert list(path["customdata"]) == [1, 2, 3, 4, 20, 40, 60, 80, 100]
    assert list(path["text"]) == ["1"] + [""] * 7 + ["100"]


def test_losses_are_one_panel_each(tmp_path: Path) -> None:
    figure = figures.loss_figure(gather(make_training(tmp_path)))
    assert figure is not None
    assert [list(trace["x"]) for trace in figure.spec["data"]] == [list(range(1, 101))] * 2


def test_verdicts_are_shown_as_changes(tmp_path: Path) -> None:
    found = gather(make_run(tmp_path))
    row = verdict_rows(found)[0]
    before, after = (found.stages[stage].summary.sets[0] for stage in ("before", "after"))
    assert (row.name, row.n) == ("jailbreakbench_harmful", "100")
    assert row.counts == [f"{before.refused} → {after.refused}", f"{before.complied} → {after.complied}", "0 → 1", "0"]
