from __future__ import annotations

from pathlib import Path

import pytest

from ballast.errors import RunError
from ballast.report.read import gather, read_completions
from ballast.runs import read_json, sha256_file, write_json
from tests.report.artefacts import make_measurement, make_region, make_run, make_training
from tests.report.overlaps import make_overlap
from tests.report.validations import make_validation


def test_a_complete_run_is_read_whole(tmp_path: Path) -> None:
    found = gather(make_run(tmp_path))
    assert list(found.stages) == ["before", "after"]
    assert found.run is not None
    assert found.run.command == "demo"
    assert len(found.training) == 105
    assert found.missing == ()
    assert {file.name: file.sha256 for file in found.files}["region.json"] == sha256_file(tmp_path / "region.json")


def test_missing_parts_are_none_and_named(tmp_path: Path) -> None:
    found = gather(make_measurement(tmp_path))
    assert list(found.stages) == ["measured"]
    assert found.comparison is None
    assert found.region is None
    assert found.harden is None
    assert found.missing == ("manifest", "comparison", "region", "training", "patch")


@pytest.mark.parametrize("make", [make_region, make_training, make_measurement, make_overlap, make_validation])
def test_any_one_part_is_enough(tmp_path: Path, make: object) -> None:
    assert callable(make)
    gather(make(tmp_path))


@pytest.mark.parametrize(("make", "part"), [(make_overlap, "overlap"), (make_validation, "validation")])
def test_an_overlap_or_a_validation_is_whole_by_itself(tmp_path: Path, make: object, part: str) -> None:
    assert callable(make)
    found = gather(make(tmp_path))
    assert getattr(found, part) is not None
    assert found.missing == ()
    (tmp_path / "run.json").unlink()
    assert gather(tmp_path).missing == ("manifest",)


def test_an_overlap_of_another_form_is_refused(tmp_path: Path) -> None:
    make_overlap(tmp_path)
    found = read_json(tmp_path / "overlap.json")
    del found["regions"][1]["cells"]
    write_json(tmp_path / "overlap.json", found)
    with pytest.raises(RunError, match=r"overlap\.json is damaged \(regions\.1\.cells: "):
        gather(tmp_path)


def test_a_folder_without_artefacts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to report on"):
        gather(tmp_path)
    with pytest.raises(RunError, match="not a folder"):
        gather(tmp_path / "missing")


def test_a_comparison_finds_measurements_elsewhere(tmp_path: Path) -> None:
    make_run(tmp_path / "old")
    comparison = read_json(tmp_path / "old" / "comparison.json")
    elsewhere = {"before": str(tmp_path / "old" / "before"), "after": str(tmp_path / "old" / "after")}
    write_json(tmp_path / "new" / "comparison.json", comparison | elsewhere)
    stages = gather(tmp_path / "new").stages
    assert list(stages) == ["before", "after"]
    assert len(read_completions(stages["after"], "xstest_safe")) == 250


def test_answers_that_were_not_kept_are_none(tmp_path: Path) -> None:
    make_measurement(tmp_path)
    (tmp_path / "completions" / "builtin-twins-test.jsonl").unlink()
    stage = gather(tmp_path).stages["measured"]
    assert read_completions(stage, "builtin/twins/test") == {}
    assert read_completions(stage, "unknown") == {}
    assert len(read_completions(stage, "builtin/harmful/test")) == 48


@pytest.mark.parametrize("folder", [".", "harden"])
def test_training_is_found_in_its_own_folder_too(tmp_path: Path, folder: str) -> None:
    make_training(tmp_path / folder)
    found = gather(tmp_path)
    assert found.harden is not None
    assert len(found.training) == 105


def test_an_unfinished_line_is_skipped_and_left_alone(tmp_path: Path) -> None:
    log = make_training(tmp_path) / "harden.jsonl"
    with log.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 101, "lo')
    before = log.read_bytes()
    assert len(gather(tmp_path).training) == 105
    assert log.read_bytes() == before


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    log = make_training(tmp_path) / "harden.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:2], "{oops\n", *lines[3:]]))
    with pytest.raises(RunError, match="line 3 is damaged"):
        gather(tmp_path)


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    make_region(tmp_path)
    write_json(tmp_path / "region.json", read_json(tmp_path / "region.json") | {"actual": "many"})
    with pytest.raises(RunError, match=r"region\.json is damaged \(actual: "):
        gather(tmp_path)
