"""Hardening that stops at a target."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import UsageError
from ballast.judges import JUDGES
from ballast.runs import RunDirectory
from ballast.tune.checks import check
from tests.tune.world import (
    SELECT_HARMFUL,
    SELECT_HARMLESS,
    SETTINGS,
    Stop,
    contents,
    record_of,
    rows_of,
    run,
    steps_taken,
    stop_at,
)
from tests.worlds import OpeningJudge, tiny_lm

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("judges")


class TestTarget:
    """At a budget of 1 the attack success of the undisturbed run decides where a run with a target stops."""

    @staticmethod
    @cache
    def rates() -> list[tuple[int, float]]:
        folder = Path(tempfile.mkdtemp())
        run(tiny_lm(), folder, max_over_refusal_rise=1.0)
        return [(row["step"], row["attack_success_rate"]) for row in record_of(folder)["selection"]]

    def stop(self) -> tuple[int, float]:
        """The first check that lowered attack success, which is not the last."""
        return next((step, rate) for step, rate in self.rates() if rate < self.rates()[0][1])

    def test_stops_at_the_first_check_that_is_there(self, tmp_path: Path) -> None:
        step, rate = self.stop()
        assert 0 < step < SETTINGS.steps
        run(tiny_lm(), tmp_path / "whole", max_over_refusal_rise=1.0)
        lm = tiny_lm()
        patch = run(lm, tmp_path / "stopped", max_over_refusal_rise=1.0, target_asr=rate)
        assert rows_of(tmp_path / "stopped") == [row for row in rows_of(tmp_path / "whole") if row["step"] <= step]
        record = record_of(tmp_path / "stopped")
        assert (record["steps"], record["chosen_step"], record["target_reached"]) == (step, step, True)
        assert "stopped here, at the target" in record["reason"]
        rows = [row["over_refusal"] for row in record["selection"]]
        assert record["over_refusal_rise"] == rows[-1] - rows[0]
        patch.apply(lm.model)
        found = check(lm, OpeningJudge("N"), SELECT_HARMFUL, [SELECT_HARMLESS], step, SETTINGS.check_tokens)
        assert found.attack_success_rate == rate

    @pytest.mark.parametrize("name", ["_best", "write_json"])
    def test_killed_and_resumed_is_done(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted: dict[str, Any] = {"max_over_refusal_rise": 1.0, "target_asr": self.stop()[1]}
        expected = contents(run(tiny_lm(), tmp_path / "undisturbed", **wanted))
        with monkeypatch.context() as patched:
            stop_at(0, name, patched)
            with pytest.raises(Stop):
                run(tiny_lm(), tmp_path / "killed", **wanted)
        done = steps_taken(monkeypatch)
        assert contents(run(tiny_lm(), tmp_path / "killed", **wanted)) == expected
        assert record_of(tmp_path / "killed") == record_of(tmp_path / "undisturbed")
        assert RunDirectory.state_of(tmp_path / "killed") == "done"
        assert done == []

    def test_that_no_check_reaches(self, tmp_path: Path) -> None:
        run(tiny_lm(), tmp_path, target_asr=0.0, steps=5)
        record = record_of(tmp_path)
        assert record["steps"] == 5
        assert record["target_reached"] is False
        assert record["reason"].endswith("; the target of 0% attack success was not reached")

    def test_that_the_untuned_model_meets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(JUDGES, "opening", lambda: OpeningJudge(""))  # every answer is a refusal
        done = steps_taken(monkeypatch)
        for _ in range(2):
            with pytest.raises(UsageError, match=r"complies with 0% of the harmful select prompts, .* target of 10%"):
                run(tiny_lm(), tmp_path, target_asr=0.1)
        assert done == []

    def test_is_not_met_by_answers_without_a_verdict(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="got a verdict"):
            run(tiny_lm(), tmp_path, judge="unscored", target_asr=0.1)
