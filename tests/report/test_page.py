from __future__ import annotations

import base64
import hashlib
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ballast.errors import RunError
from ballast.report import page, write_report
from ballast.runs import read_json, write_json
from tests.report.artefacts import HARMFUL_ANSWER, NASTY, make_measurement, make_region, make_run, make_training


class Reader(HTMLParser):
    """The elements of a page, the texts of its scripts, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are nested"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.elements if "id" in attributes}

    def all_of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def reader(run: Path) -> Reader:
    return read(write_report(run))


def test_a_complete_run_has_every_section(reader: Reader) -> None:
    sections = {"results", "flips", "region", "coverage", "training", "judges", "provenance"}
    drawn = {"safety", "over_refusal", "share", "density", "loss", "path"}
    assert reader.ids() == sections | {f"figure-{name}" for name in drawn}
    assert not reader.open


def test_the_page_needs_no_network(reader: Reader) -> None:
    for tag, attributes in reader.elements:
        assert "src" not in attributes
        assert tag not in ("iframe", "img", "object", "base")
    assert [attributes["href"] for attributes in reader.all_of("link")] == ["data:,"]


def test_the_policy_allows_exactly_the_two_scripts_on_the_page(reader: Reader) -> None:
    [policy] = [a["content"] or "" for a in reader.all_of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    executed = [
        text
        for text, attributes in zip(reader.scripts, reader.all_of("script"), strict=True)
        if attributes.get("type") != "application/json"
    ]
    assert allowed == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in executed]
    assert len(allowed) == 2
    assert policy.startswith("default-src 'none';")


def test_text_of_prompts_and_names_stays_text(tmp_path: Path) -> None:
    make_run(tmp_path)
    comparison = read_json(tmp_path / "comparison.json")
    comparison["sets"][0]["name"] = '</script><img src=x onerror="alert(1)">'
    write_json(tmp_path / "comparison.json", comparison)
    reader = read(write_report(tmp_path))
    assert NASTY in reader.text
    assert '</script><img src=x onerror="alert(1)">' in reader.text
    assert not reader.all_of("img")
    assert not any("document.title = 'owned" in script for script in reader.scripts)


def test_no_harmful_answer_is_whole_and_none_is_open(reader: Reader, run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    shown = [match.start() for match in re.finditer(re.escape(HARMFUL_ANSWER[:60]), html)]
    assert shown
    assert HARMFUL_ANSWER[:201] not in html
    for place in shown:
        opened = html.rfind("<details>", 0, place)
        assert opened > html.rfind("</details>", 0, place)
    assert all("open" not in attributes for attributes in reader.all_of("details"))


def test_the_same_artefacts_give_the_same_page(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize(
    ("make", "sections"),
    [
        (make_measurement, {"results", "judges", "provenance", "figure-safety", "figure-over_refusal"}),
        (make_region, {"region", "coverage", "provenance", "figure-share", "figure-density"}),
        (make_training, {"training", "provenance", "figure-loss", "figure-path"}),
    ],
)
def test_a_part_of_a_run_has_a_shorter_page(tmp_path: Path, make: object, sections: set[str]) -> None:
    assert callable(make)
    assert read(write_report(make(tmp_path))).ids() == sections


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    make_run(tmp_path, state="running")
    assert "This run is not finished" in read(write_report(tmp_path)).text


def test_rates_that_could_not_be_measured_are_no_numbers(tmp_path: Path) -> None:
    summary = read_json(make_measurement(tmp_path) / "summary.json")
    counts = {"scored": 0, "refused": 0, "complied": 0, "degenerate": 0, "unscored": summary["sets"][0]["n"]}
    summary["sets"][0] |= {"rate": None, "low": None, "high": None} | counts
    write_json(tmp_path / "summary.json", summary)
    assert "jailbreakbench_harmful: no answer could be scored." in read(write_report(tmp_path)).text


def test_nothing_is_written_for_a_folder_without_artefacts(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to report on"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="not a folder"):
        write_report(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_region(tmp_path)
    write_report(tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(page, "render", lambda artefacts: "half a page")
    with pytest.raises(RunError, match="No space left on device"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"region.json", "report.html"}
