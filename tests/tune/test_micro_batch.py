"""Fine-tuning where memory runs out: fewer rows at once, and the same result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import UsageError
from ballast.models import open_model
from ballast.models.fingerprint import fingerprints
from ballast.tune import finetune
from ballast.tune.finetune_log import Log
from ballast.tune.micro_batch import half
from tests.tune.finetune_world import SETTINGS, TASK, Stop, losses, region_of, rows_of, stopping_at
from tests.worlds import tiny_lm

torch.set_num_threads(1)


class Narrow:
    """A model that has no memory for more than some rows, from some pass on."""

    def __init__(self, rows: int, passes: int = 0) -> None:
        self.rows, self.passes = rows, passes

    def __deepcopy__(self, _: Any) -> Narrow:
        return self

    def __call__(self, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        self.passes -= 1
        if self.passes < 0 and len(named["input_ids"]) > self.rows:
            raise torch.OutOfMemoryError("no room")


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
            "Memory ran out with 4 rows per pass; going on with 2, still 4 rows a step.",
            "Memory ran out with 2 rows per pass; going on with 1, still 4 rows a step.",
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
        lm.model.register_forward_pre_hook(Narrow(0), with_kwargs=True)
        with pytest.raises(UsageError, match="a single row does not fit into memory"):
            finetune(lm, TASK, protect=None, out=tmp_path, settings=SETTINGS)
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(("rows", "batch", "expected"), [(8, 8, 4), (6, 6, 3), (3, 6, 1), (5, 15, 1), (15, 15, 5)])
    def test_fewer_rows_divide_the_batch(self, rows: int, batch: int, expected: int) -> None:
        assert half(rows, batch) == expected
