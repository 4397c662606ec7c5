"""`ballast harden` on a tiny checkpoint, where an answer that begins with `S` is a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.cli import main
from ballast.judges import JUDGES
from ballast.runs import read_json
from tests.cli.calls import printed, value
from tests.e2e.world import make_checkpoint, make_prompts
from tests.worlds import OpeningJudge

torch.set_num_threads(1)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The command up to its options; two regions of 5 and 50 % of the weights are there."""
    monkeypatch.setitem(JUDGES, "keyword", lambda: OpeningJudge("S"))
    checkpoint = make_checkpoint(tmp_path / "model")
    refusals = make_prompts(tmp_path / "bad.jsonl", "make", 6, response="Sorry, I can't help with that.")
    for share in ("0.05", "0.5"):
        printed(capsys, "locate", checkpoint, "--prompts", refusals, "--fraction", share, "--out", tmp_path / share)
    make_prompts(tmp_path / "good.jsonl", "bake", 4)
    make_prompts(tmp_path / "select-bad.jsonl", "take", 3)
    make_prompts(tmp_path / "select-good.jsonl", "rake", 3)
    sets = {"refusals": "bad", "harmless": "good", "select-harmful": "select-bad", "select-harmless": "select-good"}
    options = [part for name, stem in sets.items() for part in (f"--{name}", str(tmp_path / f"{stem}.jsonl"))]
    options += ["--steps", "10", "--learning-rate", "0.05", "--max-over-refusal-rise", "1", "--help-weight", "0"]
    return ["harden", str(checkpoint), str(tmp_path / "0.5" / "region.safetensors"), *options]


def test_target(call: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = value(capsys, *call, "--out", tmp_path / "whole")
    assert (whole["steps"], whole["target_reached"], whole["combinations"]) == (10, None, [])
    first = read_json(tmp_path / "whole" / "harden.json")["selection"][1]
    asked = [*call, "--target-asr", f"{min(0.99, first['attack_success_rate'])}", "--out", str(tmp_path / "stopped")]
    text = printed(capsys, *asked)
    assert "Step 5 was kept: hardening stopped here, at the target of" in text
    assert "5 steps, " in text
    shown = value(capsys, *asked)
    assert (shown["step"], shown["steps"], shown["target_reached"]) == (5, 5, True)
    assert shown["over_refusal_rise"] == first["over_refusal"]


def test_several_regions_and_weights(call: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = [*call, str(tmp_path / "0.05" / "region.safetensors"), "--help-weight", "1", "--out", str(tmp_path / "o")]
    text = printed(capsys, *several)
    sweep = read_json(tmp_path / "o" / "sweep.json")
    assert [row["help_weight"] for row in sweep["rows"]] == [0, 1, 0, 1]
    assert [row["entries"] for row in sweep["rows"]][::2] == sorted(
        {row["entries"] for row in sweep["rows"]}, reverse=True
    )
    assert f"Combination {sweep['chosen']} is the best on the select prompts." in text
    chosen = tmp_path / "o" / sweep["chosen"] / "patch.safetensors"
    assert (tmp_path / "o" / "patch.safetensors").read_bytes() == chosen.read_bytes()
    assert value(capsys, *several)["combinations"] == sweep["rows"]


def test_objective_and_variant(call: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: Any) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code != 0
        return capsys.readouterr().err

    assert "fixes learning_rate at 3e-05" in fails(*call, "--variant", "reference_code", "--out", tmp_path / "a")
    default = [*call[:-4], *call[-2:], "--learning-rate", "0.001"]  # given, so not to be replaced in silence
    assert "at 3e-05, so 0.001" in fails(*default, "--variant", "reference_code", "--out", tmp_path / "a")
    assert "cross_entropy" in fails(*call, "--objective", "other", "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    fails(*call, "--objective", "preference", "--steps", "1", "--out", tmp_path / "b")  # one step teaches nothing
    assert read_json(tmp_path / "b" / "run.json")["settings"]["objective"] == "preference"
