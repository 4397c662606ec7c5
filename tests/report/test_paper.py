"""Figures for papers: every colour resolved, every figure there, and a sentence where a program is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ballast.errors import RunError, UsageError
from ballast.report import write_figures
from ballast.report.drawing import figures_in
from ballast.report.page import content
from ballast.report.paper import COLUMN, for_paper
from ballast.report.read import gather
from tests.report.artefacts import make_run
from tests.report.overlaps import make_overlap
from tests.report.validations import make_validation


@pytest.mark.parametrize("make", [make_run, make_overlap, make_validation])
def test_no_colour_and_no_font_is_left_to_the_page(tmp_path: Path, make: object) -> None:
    assert callable(make)
    figures = list(figures_in(content(gather(make(tmp_path)))))
    assert figures
    for figure in figures:
        drawn = for_paper(figure)
        assert "var(--" not in json.dumps(drawn)
        assert drawn["layout"]["width"] == COLUMN
        frame = drawn["layout"]["template"]["layout"]
        assert (frame["paper_bgcolor"], frame["plot_bgcolor"]) == ("#ffffff", "#ffffff")
        assert "Liberation Sans" in frame["font"]["family"]


def test_paper_has_the_light_colours(tmp_path: Path) -> None:
    figures = {figure.name: figure for figure in figures_in(content(gather(make_run(tmp_path))))}
    after = for_paper(figures["safety"])["data"][1]
    assert after["marker"]["color"] == "#0067a8"
    assert for_paper(figures["share"])["data"][0]["colorscale"][4] == [1.0, "#07325f"]


def test_every_figure_of_the_page_is_there(tmp_path: Path) -> None:
    names = [figure.name for figure in figures_in(content(gather(make_run(tmp_path))))]
    assert names == ["safety", "over_refusal", "share", "density", "loss", "path"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(UsageError, match=r"pip install 'ballast-llm\[figures\]'"):
        write_figures(make_run(tmp_path), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_missing_browser_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(RunError, match="none was found; install one"):
        write_figures(make_run(tmp_path), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_folder_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to report on"):
        write_figures(tmp_path, tmp_path / "figures")
