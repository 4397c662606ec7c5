"""What fails is written down, stops nothing else, and is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from ballast.errors import NumericalError
from ballast.locate import METHODS, Found, Task, register
from ballast.locate.weights import scores_by_part
from ballast.runs import read_json
from ballast.study import study, work
from ballast.study.engines.base import Done, Failure, Job, Result
from ballast.study.tables import CellRow
from tests.study.world import Here, grid, read_rows, regions, save_model, write_sets

torch.set_num_threads(1)

WANDA = {"method": "wanda", "fraction": 0.05}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_model(folder / "one")
    write_sets(folder)
    return folder


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A method `faulty` that scores by magnitude, and raises for the sets in this table: `user` or `bug`."""
    faults: dict[str, str] = {}

    @dataclass(frozen=True)
    class Faulty:
        name: ClassVar[str]
        granularity: ClassVar[str] = "weight"
        reference: ClassVar[str] = ""
        fidelity: ClassVar[str] = ""
        needs: ClassVar[str] = "nothing"

        def score(self, task: Task) -> Found:
            fault = faults.get(task.prompts.name)
            if fault == "user":
                raise NumericalError("The loss of locks-car is not finite; use other prompts.")
            if fault == "bug":
                raise RuntimeError("shapes (3)\n and (4) differ")
            return Found(scores_by_part(task.lm, lambda part: task.lm.weight(part.name).float().abs()))

    monkeypatch.setitem(METHODS, "faulty", Faulty)  # so that the entry is gone after the test
    register("faulty")(Faulty)
    return faults


def small(files: Path, **changes: Any) -> Any:
    sets = {"safety": [str(files / "locks.jsonl"), str(files / "notes.jsonl")]}
    return grid(files, **{"sets": sets, "splits": 0, "refine": ["none"], **changes})


def failed(out: Path) -> dict[tuple[str, str, str], str | None]:
    """The errors by method, set and refinement."""
    rows = read_rows(out, "cells", CellRow)
    return {(row.method, row.set, row.refinement): row.error for row in rows if row.state != "done"}


def test_one_bad_method_spoils_only_its_own_cells(files: Path, tmp_path: Path, faulty: dict[str, str]) -> None:
    methods = {"wanda": WANDA, "faulty": {"method": "faulty", "sizes": [0.1, 0.2]}}
    chosen = small(files, methods=methods)
    faulty["locks"] = "user"
    engine = Here()
    found = study(chosen, out=tmp_path / "first", engine=engine)
    assert [[scoring.method.name for scoring in job.scorings] for job in engine.located] == [
        ["wanda", "faulty"],
        ["wanda", "faulty"],
        ["wanda"],
        ["faulty"],
    ]
    sentence = "The loss of locks-car is not finite; use other prompts."
    assert failed(tmp_path / "first") == {("faulty", "locks", "none"): sentence}
    assert found["state"] == "failed"
    assert found["cells"] == {"planned": 6, "files": 6, "done": 4, "failed": 2}
    assert [(one["method"], one["set"], one["size"], one["error"]) for one in found["failures"]["cells"]] == [
        ("faulty", "locks", 0.1, sentence),
        ("faulty", "locks", 0.2, sentence),
    ]

    engine = Here()
    study(chosen, out=tmp_path / "first", engine=engine)  # tried again, and alone
    assert [[scoring.method.name for scoring in job.scorings] for job in engine.located] == [["faulty"]]
    faulty.clear()
    found = study(chosen, out=tmp_path / "first", engine=Here())
    assert (found["state"], found["failures"]) == ("done", {"models": {}, "cells": [], "comparisons": []})
    study(chosen, out=tmp_path / "second", engine=Here())
    assert regions(tmp_path / "first") == regions(tmp_path / "second")


def test_an_error_that_is_nobodys_fault_leaves_its_traceback(
    files: Path, tmp_path: Path, faulty: dict[str, str]
) -> None:
    faulty["notes"] = "bug"
    study(small(files, methods={"faulty": {"method": "faulty"}}), out=tmp_path, engine=Here())
    assert failed(tmp_path) == {("faulty", "notes", "none"): "RuntimeError: shapes (3) and (4) differ"}
    records = [read_json(path) for path in (tmp_path / "cells").glob("*.json")]
    (record,) = [record for record in records if record["state"] == "failed"]
    assert "in score" in record["traceback"]


def test_a_size_that_selects_nothing_fails_by_itself(files: Path, tmp_path: Path) -> None:
    engine = Here()
    study(small(files, methods={"wanda": {"method": "wanda", "sizes": [1e-6, 0.05]}}), out=tmp_path, engine=engine)
    assert len(engine.located) == 2
    errors = failed(tmp_path)
    assert set(errors) == {("wanda", "locks", "none"), ("wanda", "notes", "none")}
    assert all(error and "No weight would be selected" in error for error in errors.values())


def test_without_a_utility_region_there_is_no_refined_one(files: Path, tmp_path: Path, faulty: dict[str, str]) -> None:
    faulty["sums"] = "user"
    chosen = grid(files, splits=0, methods={"wanda": WANDA, "faulty": {"method": "faulty", "fraction": 0.1}})
    found = study(chosen, out=tmp_path, engine=Here())
    sentence = "The loss of locks-car is not finite; use other prompts."
    missing = f"A region that this one is made with is missing: {sentence}"
    sets = ("locks", "notes", "plans")
    lost = {("faulty", name, refinement) for name in sets for refinement in ("subtract", "refill")}
    errors = failed(tmp_path)
    assert errors.pop(("faulty", "sums", "none")) == sentence
    assert errors.pop(("faulty", "sums+words", "union")) == missing
    assert errors.keys() == lost
    assert all(error and error.endswith(sentence) for error in errors.values())
    assert {(row["method"], row["refinement"]) for row in found["summary"]} == {
        ("wanda", "none"),
        ("wanda", "subtract"),
        ("wanda", "refill"),
        ("faulty", "none"),
    }
    faulty.clear()
    assert study(chosen, out=tmp_path, engine=Here())["state"] == "done"


def test_nothing_left_of_a_region_is_a_failure_of_that_cell(files: Path, tmp_path: Path) -> None:
    study(grid(files, splits=0, methods={"magnitude": {"method": "magnitude"}}), out=tmp_path, engine=Here())
    errors = failed(tmp_path)
    assert {place[2] for place in errors} == {"subtract"}  # the largest 1 % are among the largest 4 %
    assert all(error and "nothing would be left" in error for error in errors.values())


class Dying(Here):
    """Its processes die as soon as they have written their cells."""

    def run(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Done[Job, Result]]:
        for done in super().run(work, jobs):
            yield done if done.result is not None else done._replace(failure=Failure("The worker process died."))


def test_what_was_written_before_a_worker_died_is_done(files: Path, tmp_path: Path) -> None:
    methods = {"wanda": WANDA, "magnitude": {"method": "magnitude"}}
    engine = Dying()
    found = study(small(files, methods=methods), out=tmp_path, engine=engine)
    assert found["cells"] == {"planned": 4, "files": 4, "done": 4}
    assert [len(job.scorings) for job in engine.located] == [2, 2]


def test_a_model_that_cannot_be_opened_stops_no_other(files: Path, tmp_path: Path) -> None:
    models = {
        "two": {"model": str(files / "one"), "base": "gone"},
        "gone": {"model": str(files / "nowhere")},
    }
    methods = {"wanda": WANDA, "delta": {"method": "delta", "fraction": 0.01}}
    found = study(small(files, models=models, methods=methods), out=tmp_path, engine=Here())
    assert found["state"] == "failed"
    assert list(found["failures"]["models"]) == ["gone"]
    assert "is not a model folder" in found["failures"]["models"]["gone"]
    assert found["models"]["gone"] is None
    assert found["cells"] == {"planned": 2, "files": 2, "done": 2}
    assert found["left_out"] == [{"model": "two", "method": "delta", "reason": "its base gone could not be opened"}]


def test_an_opened_model_is_used_until_something_fails(files: Path, tmp_path: Path, faulty: dict[str, str]) -> None:
    """A job that fails half way may leave a model with hooks, so the next one opens it anew."""
    opened = []
    original = work.open_model

    def counted(source: str, **options: Any) -> Any:
        opened.append(source)
        return original(source, **options)

    faulty["locks"] = "user"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(work, "open_model", counted)
        work._opened.clear()
        study(small(files), out=tmp_path / "fine", engine=Here())
        assert len(opened) == 1
        study(small(files, methods={"faulty": {"method": "faulty"}}), out=tmp_path / "faulty", engine=Here())
        assert len(opened) == 2
