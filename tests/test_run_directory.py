"""Runs that continue where they stopped, or are refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import RunError
from ballast.runs import RunDirectory, read_json, versions

SETTINGS = {"fraction": 0.01, "layers": (1, 2)}
INPUTS = {"model": {"source": "smollm2"}, "prompt_sets": {"a": {"hash": "1234", "n": 3}}}


class TestRunDirectory:
    def test_a_new_run_has_a_manifest(self, tmp_path: Path) -> None:
        assert RunDirectory.state_of(tmp_path / "run") is None
        RunDirectory.open(tmp_path / "run", "harden", SETTINGS, INPUTS)
        manifest = read_json(tmp_path / "run" / "run.json")
        assert manifest["command"] == "harden"
        assert manifest["settings"] == {"fraction": 0.01, "layers": [1, 2]}
        assert manifest["model"] == INPUTS["model"]
        assert manifest["prompt_sets"] == INPUTS["prompt_sets"]
        assert manifest["versions"] == versions()
        assert manifest["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
        assert manifest["steps"] == {}
        assert RunDirectory.state_of(tmp_path / "run") == "running"

    def test_the_same_command_continues(self, tmp_path: Path) -> None:
        first = RunDirectory.open(tmp_path, "harden", SETTINGS, INPUTS)
        with first.step("locate"):
            assert not first.is_done("locate")
        second = RunDirectory.open(tmp_path, "harden", SETTINGS, INPUTS)
        assert second.is_done("locate")
        assert not second.is_done("tune")
        assert second.manifest == first.manifest
        second.finish()
        assert RunDirectory.state_of(tmp_path) == "done"
        assert RunDirectory.open(tmp_path, "harden", SETTINGS, INPUTS).is_done("locate")

    @pytest.mark.parametrize(
        ("changed", "differing"),
        [
            ({"command": "locate"}, ['command: "locate" now, "harden" there']),
            ({"settings": {**SETTINGS, "fraction": 0.02}}, ["settings.fraction: 0.02 now, 0.01 there"]),
            ({"settings": {"fraction": 0.01}}, ["settings.layers: null now, [1, 2] there"]),
            ({"settings": {**SETTINGS, "seed": 1}}, ["settings.seed: 1 now, null there"]),
            (
                {"inputs": {"model": {"source": "other"}, "prompt_sets": {"a": {"hash": "99", "n": 3}}}},
                ['model.source: "other" now, "smollm2" there', 'prompt_sets.a.hash: "99" now, "1234" there'],
            ),
            (
                {"inputs": {"model": {"source": "smollm2"}, "prompt_sets": {"b": {"hash": "99", "n": 3}}}},
                ["prompt_sets.a: only there", "prompt_sets.b: only now"],
            ),
            (
                {"settings": dict.fromkeys("abc", 1)},
                [f"settings.{key}: 1 now, null there" for key in "abc"] + ["and 2 more"],
            ),
        ],
    )
    def test_another_command_is_refused_with_what_differs(
        self, tmp_path: Path, changed: dict[str, Any], differing: list[str]
    ) -> None:
        arguments: dict[str, Any] = {"command": "harden", "settings": SETTINGS, "inputs": INPUTS}
        RunDirectory.open(tmp_path, **arguments)
        before = (tmp_path / "run.json").read_bytes()
        with pytest.raises(RunError, match="use another --out folder or delete it") as caught:
            RunDirectory.open(tmp_path, **{**arguments, **changed})
        assert f"({'; '.join(differing)})" in str(caught.value)
        assert (tmp_path / "run.json").read_bytes() == before

    def test_a_step_that_fails_is_not_done(self, tmp_path: Path) -> None:
        run = RunDirectory.open(tmp_path, "harden", SETTINGS, INPUTS)
        with pytest.raises(ZeroDivisionError), run.step("locate"):
            raise ZeroDivisionError
        assert not run.is_done("locate")
        assert not RunDirectory.open(tmp_path, "harden", SETTINGS, INPUTS).is_done("locate")

    def test_steps_record_their_seconds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = RunDirectory.open(tmp_path, "harden", SETTINGS, INPUTS)
        clock = iter([100.0, 103.254])
        monkeypatch.setattr("ballast.runs.time.monotonic", lambda: next(clock))
        with run.step("locate"):
            pass
        assert read_json(tmp_path / "run.json")["steps"] == {"locate": {"state": "done", "seconds": 3.25}}

    def test_no_space_leaves_no_run_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_space(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(RunError, match="No space left"):
            RunDirectory.open(tmp_path / "run", "harden", SETTINGS, INPUTS)
        assert not list((tmp_path / "run").iterdir())
        assert RunDirectory.state_of(tmp_path / "run") is None

    @pytest.mark.parametrize("content", ['{"command": "har', "[]", "3"])
    def test_a_damaged_manifest_is_named(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(RunError, match=r"run\.json is not"):
            RunDirectory.open(tmp_path, "harden", SETTINGS, INPUTS)
        with pytest.raises(RunError, match=r"run\.json is not"):
            RunDirectory.state_of(tmp_path)
