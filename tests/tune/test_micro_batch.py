"""Fine-tuning and hardening where memory runs out: fewer rows at once, and the same result."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import UsageError
from ballast.models import LanguageModel, open_model
from ballast.models.fingerprint import fingerprints
from ballast.runs import read_json
from ballast.tune import finetune
from ballast.tune.finetune_log import Log
from ballast.tune.micro_batch import half
from ballast.tune.objective import lesson_losses
from tests.tune import world as harden_world
from tests.tune.finetune_world import SETTINGS, TASK, Stop, losses, region_of, rows_of, stopping_at
from tests.worlds import tiny_lm

torch.set_num_threads(1)


class Narrow:
    """A model that has no memory for more than some rows, from some pass on."""

    def __init__(self, rows: int, passes: int = 0, error: Exception | None = None) -> None:
        self.rows, self.passes = rows, passes
        self.error = error or torch.OutOfMemoryError("no room")

    def __deepcopy__(self, _: Any) -> Narrow:
        return self

    def __call__(self, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        self.passes -= 1
        if self.passes < 0 and len(named["input_ids"]) > self.rows:
            raise self.error


class TestLittleMemory:
    def test_fewer_rows_at_once_and_the_same_weights(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        settings = dataclasses.replace(SETTINGS, micro_batch=4)
        lm = tiny_lm()
        single = dataclasses.replace(settings, micro_batch=1)
        expected = finetune(lm, TASK, protect=None, out=tmp_path / "single", settings=single)
        finetune(lm, TASK, protect=None, out=tmp_path / "wide", settings=settings)
        lm.model.register_forward_pre_hook(Narrow(1), with_kwargs=True)
        found = finetune(lm, TASK, protect=None, out=tmp_path / "narrow", settings=settings)
        assert fingerprints(open_model(found).model) == fingerprints(open_model(expected).model)
        assert losses(tmp_path / "narrow") == pytest.approx(losses(tmp_path / "wide"), rel=1e-3)
        assert json.loads((tmp_path / "narrow" / "run.json").read_text())["micro_batch"] == 1
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Memory")]
        assert said == [
            "Memory ran out with 4 rows per pass; going on with 2, and as many rows a step as before.",
            "Memory ran out with 2 rows per pass; going on with 1, and as many rows a step as before.",
        ]

    def test_in_the_middle_it_continues_behind_the_last_state(self, tmp_path: Path) -> None:
        """Killed later, it continues with what fitted, and ends with the same bits."""
        settings = dataclasses.replace(SETTINGS, micro_batch=4)
        found = []
        for folder, killed in (("whole", False), ("killed", True)):
            lm = tiny_lm()
            region = region_of(lm)
            lm.model.register_forward_pre_hook(Narrow(2, passes=8), with_kwargs=True)  # states at 5, 10, ...
            with pytest.MonkeyPatch.context() as patched:
                if killed:
                    patched.setattr(Log, "on_log", stopping_at(12))
                    with pytest.raises(Stop):
                        finetune(lm, TASK, protect=region, out=tmp_path / folder, settings=settings)
            out = finetune(lm, TASK, protect=region, out=tmp_path / folder, settings=settings)
            found.append(fingerprints(open_model(out).model))
            assert [row["step"] for row in rows_of(tmp_path / folder)] == list(range(1, 21))
        assert found[0] == found[1]

    def test_not_even_one_row(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        error = RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")
        lm.model.register_forward_pre_hook(Narrow(0, error=error), with_kwargs=True)
        with pytest.raises(UsageError, match="a single row does not fit into memory"):
            finetune(lm, TASK, protect=None, out=tmp_path, settings=SETTINGS)
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(("rows", "batch", "expected"), [(8, 8, 4), (6, 6, 3), (3, 6, 1), (5, 15, 1), (15, 15, 5)])
    def test_fewer_rows_divide_the_batch(self, rows: int, batch: int, expected: int) -> None:
        assert half(rows, batch) == expected


def narrow_steps(monkeypatch: pytest.MonkeyPatch, rows: int, steps: int) -> None:
    """Let a training pass of hardening have no memory for more than some rows, behind some steps.

    Half of the pass is done when it fails: its gradients must not be counted twice.
    """
    done = itertools.count()
    plain = harden_world.HARDEN_MODULE.train_step

    def narrow(lm: LanguageModel, optimizer: Any, lessons: Any, settings: Any, step: int) -> dict[str, float]:
        if next(done) >= steps and settings.micro_batch > rows:
            lesson_losses(lm, lessons.batch(step, 2, 2)).refuse.backward()
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return plain(lm, optimizer, lessons, settings, step)

    monkeypatch.setattr(harden_world.HARDEN_MODULE, "train_step", narrow)


@pytest.mark.usefixtures("judges")
class TestHardening:
    def test_from_the_start_it_is_a_run_with_fewer_rows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = harden_world.run(tiny_lm(), tmp_path / "single", micro_batch=1)
        narrow_steps(monkeypatch, 1, steps=0)
        lm = tiny_lm()
        before = fingerprints(lm.model)
        found = harden_world.run(lm, tmp_path / "narrow")
        assert harden_world.contents(found) == harden_world.contents(expected)
        assert harden_world.rows_of(tmp_path / "narrow") == harden_world.rows_of(tmp_path / "single")
        assert harden_world.record_of(tmp_path / "narrow") == harden_world.record_of(tmp_path / "single")
        assert read_json(tmp_path / "narrow" / "run.json")["micro_batch"] == 1
        assert fingerprints(lm.model) == before

    def test_in_the_middle_and_killed_later(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = []
        for folder, killed in (("whole", False), ("killed", True)):
            with monkeypatch.context() as patched:
                narrow_steps(patched, 2, steps=3)  # checks are at 2, 4, 6
                if killed:
                    harden_world.stop_at(6, "train_step", patched)
                    with pytest.raises(harden_world.Stop):
                        harden_world.run(tiny_lm(), tmp_path / folder)
            with monkeypatch.context() as patched:
                narrow_steps(patched, 2, steps=0 if killed else 3)
                found.append(harden_world.contents(harden_world.run(tiny_lm(), tmp_path / folder)))
            assert read_json(tmp_path / folder / "run.json")["micro_batch"] == 2
        assert found[0] == found[1]
        assert harden_world.rows_of(tmp_path / "whole") == harden_world.rows_of(tmp_path / "killed")

    def test_not_even_one_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        narrow_steps(monkeypatch, 0, steps=0)
        with pytest.raises(UsageError, match="a single row does not fit into memory; leave out the longest prompts"):
            harden_world.run(tiny_lm(), tmp_path)
        assert (tmp_path / "state.safetensors").exists()
        assert not (tmp_path / "patch.safetensors").exists()
