"""Numbers in the figures are those of the artefact, at the places that say what they are."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from ballast.report import overlap_figures
from ballast.report.drawing import Figure, figures_in
from ballast.report.overlap_page import overlap_content
from ballast.report.overlap_schema import Overlap
from ballast.runs import read_json
from tests.report.overlaps import LAYERS, ROLES, make_overlap, make_windows

NAMES = ["a", "b & <i>c</i>", "d"]


def read(folder: Path) -> tuple[Overlap, dict[str, Any]]:
    found = read_json(folder / "overlap.json")
    return Overlap.model_validate(found), found


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Overlap, dict[str, Any]]:
    return read(make_overlap(tmp_path_factory.mktemp("three")))


def traces(figure: Figure | None) -> dict[str, dict[str, Any]]:
    assert figure is not None
    return {trace.get("name", str(number)): trace for number, trace in enumerate(figure.spec["data"])}


def test_each_pair_lies_between_its_limits(three: tuple[Overlap, dict[str, Any]]) -> None:
    overlap, found = three
    drawn = traces(overlap_figures.between_figure(overlap, NAMES))
    whole, half = found["pairs"], [pair["corrected"] for pair in found["pairs"]]
    assert list(drawn["IoU, all prompts"]["x"]) == pytest.approx([100 * pair["iou"] for pair in whole])
    assert list(drawn["IoU, half"]["x"]) == pytest.approx([100 * pair["iou"] for pair in half])
    assert list(drawn["cap"]["x"]) == pytest.approx([100 * pair["size_cap"] for pair in whole])
    assert list(drawn["rows, columns"]["x"]) == pytest.approx([100 * pair["margin_chance"] for pair in whole])
    assert list(drawn["ceiling"]["x"]) == pytest.approx([100 * pair["ceiling"] for pair in half])
    in_turn = [100 * row["chance"] for pair in zip(whole, half, strict=True) for row in pair]
    assert list(drawn["chance"]["x"]) == pytest.approx(in_turn)
    # what is of one line has one height, and the ceiling is on the line at half the prompts
    assert list(drawn["IoU, all prompts"]["y"]) == list(drawn["cap"]["y"]) == list(drawn["chance"]["y"])[::2]
    assert list(drawn["IoU, half"]["y"]) == list(drawn["ceiling"]["y"]) == list(drawn["chance"]["y"])[1::2]


def test_without_a_ceiling_nothing_is_drawn_at_half_the_prompts(tmp_path: Path) -> None:
    overlap, _ = read(make_overlap(tmp_path, 2, ceiling=False))
    assert set(traces(overlap_figures.between_figure(overlap, NAMES))) == {
        "chance",
        "rows, columns",
        "cap",
        "IoU, all prompts",
    }


def test_many_pairs_are_numbered_beside_their_lines(tmp_path: Path) -> None:
    overlap, _ = read(make_overlap(tmp_path, 6, ceiling=False))
    layout = overlap_figures.between_figure(overlap, [f"n{place}" for place in range(6)]).spec["layout"]
    pairs = [f"{first}-{second}" for first, second in itertools.combinations(range(1, 7), 2)]
    assert list(layout["yaxis"]["ticktext"]) == pairs


@pytest.mark.parametrize("kind", ["iou", "corrected"])
def test_a_matrix_is_symmetric_and_holds_every_pair(three: tuple[Overlap, dict[str, Any]], kind: str) -> None:
    overlap, found = three
    draw = overlap_figures.iou_figure if kind == "iou" else overlap_figures.corrected_figure
    figure = draw(overlap, NAMES)
    assert figure is not None
    cells, bar = figure.spec["data"]
    assert list(cells["y"]) == ["1 a", "2 b &amp; &lt;i&gt;c&lt;/i&gt;", "3 d"]
    for pair in found["pairs"]:
        value = 100 * (pair["iou"] if kind == "iou" else pair["corrected"]["corrected"])
        for row, column in ((pair["first"], pair["second"]), (pair["second"], pair["first"])):
            assert cells["z"][row][column] == pytest.approx(value)
            assert cells["text"][row][column] == f"{value:.1f}"
            assert f"IoU {100 * pair['iou']:.1f}" in cells["customdata"][row][column]
    assert [cells["z"][place][place] for place in range(3)] == [None] * 3
    assert [cells["text"][place][place] for place in range(3)] == [""] * 3
    assert (cells["zmin"], cells["zmax"]) == tuple(figure.spec["layout"]["xaxis2"]["range"])
    assert bar["x"][0] > cells["zmin"]
    assert bar["x"][-1] < cells["zmax"]


def test_the_hover_of_a_cell_says_all_numbers_and_escapes_names(three: tuple[Overlap, dict[str, Any]]) -> None:
    overlap, found = three
    hover = (
        overlap_figures.iou_figure(overlap, NAMES)
        .spec["data"][0]["customdata"][0][1]
        .replace("\N{NO-BREAK SPACE}", " ")
    )
    pair = found["pairs"][0]
    half = pair["corrected"]
    for said in (
        "<b>1 a and 2 b &amp; &lt;i&gt;c&lt;/i&gt;</b>",
        f"chance {100 * pair['chance']:.1f} %",
        f"by rows and columns {100 * pair['margin_chance']:.1f} %",
        f"cap {100 * pair['size_cap']:.1f} %",
        "p 0.001, corrected for all pairs 0.001",
        f"ceiling {100 * half['ceiling']:.1f} %",
        f"corrected {100 * half['corrected']:.1f} % [{100 * half['low']:.1f}, {100 * half['high']:.1f}]",
        "near-duplicate prompts: 1 between 9 and 9",
    ):
        assert said in hover


def test_chance_and_ceiling_are_marked_on_the_bar(three: tuple[Overlap, dict[str, Any]]) -> None:
    overlap, found = three
    layout = overlap_figures.iou_figure(overlap, NAMES).spec["layout"]
    lines = [(shape["x0"], shape["x1"]) for shape in layout["shapes"] if shape["y0"] == shape["y1"]]
    chance = [100 * pair["chance"] for pair in found["pairs"]]
    ceiling = [100 * pair["corrected"]["ceiling"] for pair in found["pairs"]]
    assert lines == [pytest.approx((min(chance), max(chance))), pytest.approx((min(ceiling), max(ceiling)))]
    assert [note["text"].split()[0] for note in layout["annotations"]] == ["chance", "ceiling"]
    assert all(shape["xref"] == "x2" for shape in layout["shapes"]), "marks lie on the scale of the bar"


def test_what_is_not_identifiable_is_no_colour(tmp_path: Path) -> None:
    found = read_json(make_overlap(tmp_path) / "overlap.json")
    found["pairs"][0]["corrected"]["corrected"] = None
    figure = overlap_figures.corrected_figure(Overlap.model_validate(found), NAMES)
    assert figure is not None
    cells = figure.spec["data"][0]
    assert cells["z"][0][1] is None
    assert cells["text"][0][1] == "–"
    for pair in found["pairs"]:
        pair["corrected"]["corrected"] = None
    assert overlap_figures.corrected_figure(Overlap.model_validate(found), NAMES) is None


def test_differences_are_of_shares_and_sum_to_nothing(three: tuple[Overlap, dict[str, Any]]) -> None:
    overlap, found = three
    cells = overlap_figures.difference_figure(overlap, overlap.pairs[1], NAMES).spec["data"][0]
    first, third = (
        {(cell["layer"], cell["role"]): 100 * cell["selected"] / region["weights"] for cell in region["cells"]}
        for region in (found["regions"][0], found["regions"][2])
    )
    roles = sorted(ROLES)
    assert list(cells["x"]) == roles
    for layer, row in enumerate(cells["z"]):
        assert list(row) == pytest.approx([first[layer, role] - third[layer, role] for role in roles])
    assert sum(map(sum, cells["z"])) == pytest.approx(0, abs=1e-9)
    assert cells["zmin"] == -cells["zmax"]
    assert cells["zmax"] == max(abs(value) for row in cells["z"] for value in row)


def test_parts_are_those_of_layers_and_roles(three: tuple[Overlap, dict[str, Any]]) -> None:
    overlap, found = three
    chance, by_layer, _, by_role = overlap_figures.parts_figure(overlap.pairs[2], NAMES).spec["data"]
    pair = found["pairs"][2]
    assert list(by_layer["x"]) == list(range(LAYERS))
    assert list(by_layer["y"]) == pytest.approx([100 * part["iou"] for part in pair["by_layer"]])
    assert list(chance["y"]) == pytest.approx([100 * part["chance"] for part in pair["by_layer"]])
    assert list(by_role["y"]) == pytest.approx([100 * part["iou"] for part in pair["by_role"]])


def test_agreement_falls_and_nothing_is_not_drawn(three: tuple[Overlap, dict[str, Any]], tmp_path: Path) -> None:
    overlap, found = three
    figure = overlap_figures.agreement_figure(overlap)
    assert figure is not None
    weights, chance = figure.spec["data"]
    assert list(weights["x"]) == [1, 2, 3]
    assert list(weights["y"]) == [row["weights"] for row in found["agreement"]]
    assert list(chance["y"]) == [row["chance"] for row in found["agreement"]]
    windows, _ = read(make_windows(tmp_path / "w"))
    none_in_three = overlap_figures.agreement_figure(windows)
    assert none_in_three is not None
    assert none_in_three.spec["data"][0]["y"][2] is None  # a logarithm of 0
    two, _ = read(make_overlap(tmp_path / "two", 2, ceiling=False))
    assert overlap_figures.agreement_figure(two) is None


def test_convergence_is_in_the_order_of_sizes_with_its_range(tmp_path: Path) -> None:
    overlap, found = read(make_overlap(tmp_path, sizes=(8, 4, 16)))
    figure = overlap_figures.convergence_figure(overlap, NAMES)
    assert figure is not None
    first, chance = figure.spec["data"][:2]
    rows = sorted(found["convergence"][0], key=lambda row: row["prompts"])
    assert list(first["x"]) == [4, 8, 16]
    assert list(first["y"]) == pytest.approx([100 * row["iou"] for row in rows])
    assert list(chance["y"]) == pytest.approx([100 * row["chance"] for row in rows])
    ends = [y + above for y, above in zip(first["y"], first["error_y"]["array"], strict=True)]
    assert ends == pytest.approx([100 * row["highest"] for row in rows])
    without, _ = read(make_overlap(tmp_path / "without", 2, sizes=()))
    assert overlap_figures.convergence_figure(without, NAMES) is None


def test_windows_lie_on_their_layers(tmp_path: Path, three: tuple[Overlap, dict[str, Any]]) -> None:
    overlap, _ = read(make_windows(tmp_path))
    figure = overlap_figures.windows_figure(overlap, NAMES)
    assert figure is not None
    [bars] = figure.spec["data"]
    ends = [(base, base + length) for base, length in zip(bars["base"], bars["x"], strict=True)]
    assert ends == [(0.5, 3.5), (1.5, 4.5), (-0.5, 0.5)]
    assert list(bars["text"]) == ["1 to 3", "2 to 4", "0"]
    assert figure.spec["layout"]["xaxis"]["range"] == [-0.5, LAYERS - 0.5]
    assert overlap_figures.windows_figure(three[0], NAMES) is None


def test_figures_have_names_of_their_own(tmp_path: Path) -> None:
    overlap, _ = read(make_overlap(tmp_path, 4))
    names = [figure.name for figure in figures_in(overlap_content(overlap))]
    assert len(set(names)) == len(names)
    assert {"between", "iou", "corrected", "agreement", "convergence", "difference-1-2", "parts-3-4"} <= set(names)
