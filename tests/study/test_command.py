"""`ballast study` as a user runs it; killed at any time, the same command ends with the same regions."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ballast.cli import main
from ballast.study import StudyGrid, study
from tests.cli.calls import printed, value
from tests.e2e.world import command, environment
from tests.study.world import Here, regions, save_model, write_sets

torch.set_num_threads(1)

PATIENCE = 240.0  # seconds
GRID = """
prompts = 8
refine = ["none", "subtract", "refill"]

[sets]
safety = ["locks.jsonl", "notes.jsonl", "plans.jsonl"]
utility = ["sums.jsonl", "words.jsonl"]

[models.tiny]
model = "./llama"
family = "llama"

[models.other]
model = "./gpt2"
family = "gpt2"

[methods.snip]
method = "snip"
sizes = [0.05, 0.1]

[methods.wanda]
method = "wanda"
fraction = 0.05
scope = "per_tensor"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for architecture in ("llama", "gpt2"):
        save_model(folder / architecture, architecture)
    write_sets(folder)
    (folder / "grid.toml").write_text(GRID)
    return folder


def test_sigkill(folder: Path, tmp_path: Path) -> None:
    """Killed while it locates: the worker ends too, and the rest is done by the same command."""
    arguments = command("study", folder / "grid.toml", "--out", tmp_path / "killed", "--json")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while len(regions(tmp_path / "killed")) < 12:
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive
    assert not (tmp_path / "killed" / "study.json").exists()
    made = regions(tmp_path / "killed")
    times = {name: (tmp_path / "killed" / "cells" / name).stat().st_mtime_ns for name in made}

    again = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert (found["state"], found["cells"]["done"]) == ("done", found["cells"]["planned"])
    study(StudyGrid.load(folder / "grid.toml"), out=tmp_path / "whole", engine=Here())
    assert regions(tmp_path / "killed") == regions(tmp_path / "whole")
    assert set(made) < set(regions(tmp_path / "whole"))
    unchanged = [name for name, at in times.items() if (tmp_path / "killed" / "cells" / name).stat().st_mtime_ns == at]
    assert len(made) - len(unchanged) <= 4  # of the call that was under way


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Here]:
    """Commands of this process work in it; the engines that they made."""
    made: list[Here] = []

    def engine(workers: int) -> Here:
        made.append(Here())
        return made[-1]

    monkeypatch.setattr("ballast.cli.study.LocalEngine", engine)
    return made


def small(folder: Path, **changes: Any) -> Path:
    """The grid with one model and changed lines."""
    text = GRID.partition("[models.other]")[0] + "[methods.snip]" + GRID.partition("[methods.snip]")[2]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / f"grid-{len(list(folder.glob('grid-*')))}.toml"
    path.write_text(text)
    return path


def test_tables_for_people_and_json_for_machines(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], here: list[Here]
) -> None:
    path = small(folder)
    text = printed(capsys, "study", path, "--out", tmp_path)
    assert "Overlap, tiny" in text
    for words in ("snip 0.05", "snip 0.1", "wanda 0.05", "subtract", "refill", "ceiling, %", "corrected, % (n)"):
        assert words in text
    assert "cells are done; written to" in text
    found = value(capsys, "study", path, "--out", tmp_path)
    assert found == json.loads((tmp_path / "study.json").read_text())
    assert here[1].located == []
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{name}.{kind}" for name in ("cells", "pairs", "kway", "refinement") for kind in ("csv", "parquet")
    }


def test_failed_cells_are_reported_and_end_with_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], here: list[Here]
) -> None:
    path = small(folder, **{"sizes = [0.05, 0.1]": "sizes = [0.0000001, 0.1]", "subtract": "refill", ', "refill"': ""})
    with pytest.raises(SystemExit) as stopped:
        main(["study", str(path), "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert stopped.value.code == 1
    assert "tiny snip 1e-07 locks 0 whole none:" in shown
    assert "What failed is tried again by the same command." in shown
    assert "Overlap, tiny" in shown


def test_bad_usage(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["study", *arguments, "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    path = str(folder / "grid.toml")
    assert "There is no engine 'slurm'; use local or ray." in refused(path, "--engine", "slurm")
    assert "Only the engine ray divides GPUs" in refused(path, "--gpus-per-job", "0.5")
    wrong = small(folder, **{'method = "wanda"': 'method = "wando"'})
    assert "did you mean wanda" in refused(str(wrong))
    assert not (tmp_path / "out").exists()
