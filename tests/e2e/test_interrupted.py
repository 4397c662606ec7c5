"""SIGKILL in the middle, then the same command: the result of an undisturbed run, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import command, environment, make_checkpoint, make_prompts, run

PATIENCE = 120.0  # seconds


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def kill_when(arguments: list[str], reached: Callable[[], bool]) -> None:
    """Start a command and kill it as soon as it got somewhere; it must not be done by then."""
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_measure(checkpoint: Path, tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 400)
    arguments = ["measure", checkpoint, "--safety", prompts, "--judge", "keyword", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    completions = killed / "completions" / "bad.jsonl"
    kill_when(command(*arguments, killed), lambda: 0 < lines(completions) < 400)
    rows = lines(completions)
    assert 0 < rows < 400
    assert not (killed / "summary.json").exists()
    again, once = run(*arguments, killed), run(*arguments, whole)
    assert (again.returncode, once.returncode) == (0, 0), again.stderr + once.stderr
    assert lines(completions) == 400
    for name in ("completions/bad.jsonl", "verdicts/keyword/bad.jsonl", "summary.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_locate(checkpoint: Path, tmp_path: Path) -> None:
    prompts = make_prompts(tmp_path / "bad.jsonl", "make", 400, response="No, I will not.")
    arguments = ["locate", checkpoint, "--prompts", prompts, "--method", "snip", "--checkpoint-seconds", "0", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_when(command(*arguments, killed), (killed / "unfinished").exists)
    assert not (killed / "region.safetensors").exists()
    again, once = run(*arguments, killed), run(*arguments, whole)
    assert (again.returncode, once.returncode) == (0, 0), again.stderr + once.stderr
    for name in ("region.safetensors", "region.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not (killed / "unfinished").exists()


HARDEN = """
import sys
from pathlib import Path
import ballast
from ballast.judges import register
from tests.worlds import OpeningJudge

register("opening")(lambda: OpeningJudge("S"))
checkpoint, region, folder, out = map(Path, sys.argv[1:])
sets = {name: ballast.load_prompts(folder / f"{name}.jsonl") for name in ("bad", "good", "select-bad", "select-good")}
settings = ballast.HardenSettings(
    steps=60,
    learning_rate=0.05,
    help_weight=0,
    judge="opening",
    max_over_refusal_rise=1,
    refusal_tokens=2,
    check_tokens=2,
)
patch = ballast.harden(
    ballast.open_model(checkpoint),
    ballast.Region.load(region),
    refusals=sets["bad"],
    harmless=[sets["good"]],
    select_harmful=sets["select-bad"],
    select_harmless=[sets["select-good"]],
    settings=settings,
    out=out,
)
patch.save(out / "patch.safetensors")
"""


def test_harden(checkpoint: Path, tmp_path: Path) -> None:
    refusals = make_prompts(tmp_path / "bad.jsonl", "make", 12, response="Sorry, I can't help with that.")
    region = tmp_path / "region"
    assert run("locate", checkpoint, "--prompts", refusals, "--fraction", "0.5", "--out", region).returncode == 0
    make_prompts(tmp_path / "good.jsonl", "bake", 12)
    make_prompts(tmp_path / "select-bad.jsonl", "take", 4)
    make_prompts(tmp_path / "select-good.jsonl", "rake", 4)
    call = [sys.executable, "-c", HARDEN, str(checkpoint), str(region / "region.safetensors"), str(tmp_path)]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_when([*call, str(killed)], lambda: lines(killed / "harden.jsonl") > 25)
    assert (killed / "state.safetensors").exists()
    for out in (killed, whole):
        done = subprocess.run([*call, str(out)], env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (killed / "patch.safetensors").read_bytes() == (whole / "patch.safetensors").read_bytes()
    assert lines(killed / "harden.jsonl") == lines(whole / "harden.jsonl") == 60 + 7
