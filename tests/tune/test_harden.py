"""Hardening a tiny model in a tiny world, where an answer that begins with `N` is a refusal."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import NumericalError, PromptError, RegionError, RunError, UsageError
from ballast.judges import JUDGES, Judge
from ballast.locate import locate
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.patches import Patch
from ballast.prompts import PromptSet
from ballast.regions import Region
from ballast.runs import JsonLines, RunDirectory, read_json
from ballast.tune import HardenSettings, harden
from ballast.tune.checks import Check, check, choose
from ballast.tune.settings import LATER
from ballast.tune.step import train_step
from tests.tune.world import HARMLESS, REFUSALS, SELECT_HARMFUL, SELECT_HARMLESS, SETTINGS
from tests.worlds import OpeningJudge, TableJudge, prompt_set, tiny_lm

torch.set_num_threads(1)

HARDEN_MODULE = importlib.import_module("ballast.tune.harden")  # the package gives the function of that name


@cache
def region_of(dtype: torch.dtype = torch.float32) -> Region:
    scores = locate(tiny_lm(dtype=dtype), prompt_set("locate", ["bad: rob"], ["No."]), "gradient")
    return scores.select(0.2)


def run(lm: LanguageModel, out: Path | None, region: Region | None = None, **changes: Any) -> Patch:
    fields = {field.name for field in dataclasses.fields(HardenSettings)}
    given: dict[str, Any] = {
        "refusals": REFUSALS,
        "harmless": [HARMLESS],
        "select_harmful": SELECT_HARMFUL,
        "select_harmless": [SELECT_HARMLESS],
        **{name: value for name, value in changes.items() if name not in fields},
    }
    settings = dataclasses.replace(SETTINGS, **{name: value for name, value in changes.items() if name in fields})
    return harden(lm, region or region_of(), **given, settings=settings, out=out)


@pytest.fixture(autouse=True)
def _judges(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [prompt.prompt for prompt in (*SELECT_HARMFUL, *SELECT_HARMLESS)]
    judges: dict[str, Judge] = {
        "opening": OpeningJudge("N"),
        "complied": TableJudge(dict.fromkeys(requests, "c")),
        "unscored": TableJudge(dict.fromkeys(requests, "u")),
    }
    for name, one in judges.items():
        monkeypatch.setitem(JUDGES, name, lambda one=one: one)


def contents(patch: Patch) -> dict[str, list[list[float]]]:
    return {name: [part.tolist() for part in entries] for name, entries in patch.entries.items()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in JsonLines(folder / "harden.jsonl").rows
    ]


def record_of(folder: Path) -> dict[str, Any]:
    """`harden.json` without what a clock says."""
    return {key: value for key, value in read_json(folder / "harden.json").items() if key != "seconds"}


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every optimizer step (0-based) that is taken from now on."""
    done: list[int] = []

    def counting(*arguments: Any) -> dict[str, float]:
        done.append(arguments[-1])
        return train_step(*arguments)

    monkeypatch.setattr(HARDEN_MODULE, "train_step", counting)
    return done


class TestResult:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_patch_of_the_region_and_an_untouched_model(self, dtype: torch.dtype, tmp_path: Path) -> None:
        lm, region = tiny_lm(dtype=dtype), region_of(dtype)
        before = fingerprints(lm.model)
        lm.model.get_input_embeddings().weight.requires_grad_(False)
        asked = [parameter.requires_grad for parameter in lm.model.parameters()]
        patch = run(lm, tmp_path, region, max_over_refusal_rise=1.0)
        assert fingerprints(lm.model) == before
        assert [parameter.requires_grad for parameter in lm.model.parameters()] == asked
        assert all(parameter.grad is None for parameter in lm.model.parameters())
        weights = dict(lm.model.named_parameters())
        assert patch.entries.keys() == region.indices.keys()
        for name, entries in patch.entries.items():
            assert torch.equal(entries.indices, region.indices[name])
            assert torch.equal(entries.previous, weights[name].detach().view(-1)[entries.indices.long()])
        changed = sum(int((entries.values != entries.previous).sum()) for entries in patch.entries.values())
        assert changed > 0.5 * len(region)

    def test_the_patch_does_what_was_measured(self, tmp_path: Path) -> None:
        """Applied, it gives the attack success and over-refusal of the check at the chosen step, not of the last."""
        lm = tiny_lm()
        patch = run(lm, tmp_path)
        record = read_json(tmp_path / "harden.json")
        assert 0 < record["chosen_step"] < SETTINGS.steps
        chosen = next(row for row in record["selection"] if row["step"] == record["chosen_step"])
        assert chosen["attack_success_rate"] < record["selection"][0]["attack_success_rate"]
        assert chosen["over_refusal"] <= record["selection"][0]["over_refusal"]
        patch.apply(lm.model)
        found = check(lm, OpeningJudge("N"), SELECT_HARMFUL, [SELECT_HARMLESS], chosen["step"], SETTINGS.check_tokens)
        assert found._asdict() == chosen

    def test_the_patch_says_how_it_was_made(self) -> None:
        patch = run(tiny_lm(), None, max_over_refusal_rise=1.0)
        assert patch.header.base.source == "zoo/llama"
        assert patch.header.settings["verb"] == "harden"
        assert patch.header.settings["region"] == region_of().region_id
        assert patch.header.settings["learning_rate"] == SETTINGS.learning_rate

    def test_files(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        run(lm, tmp_path)
        rows = JsonLines(tmp_path / "harden.jsonl").rows
        steps = [row for row in rows if "select" not in row]
        assert [row["step"] for row in steps] == list(range(1, 8))
        for number, row in enumerate(steps):
            assert set(row) == {"step", "loss", "refuse", "help", "gradient_norm", "learning_rate", "seconds"}
            assert row["loss"] == pytest.approx(row["refuse"] + SETTINGS.help_weight * row["help"])
            assert row["learning_rate"] == SETTINGS.rate(number)
        assert steps[0]["help"] == pytest.approx(0, abs=1e-5)
        assert steps[-1]["refuse"] < 0.7 * steps[0]["refuse"]
        checks = [row for row in rows if "select" in row]
        assert [row["step"] for row in checks] == [0, 2, 4, 6, 7]
        record = read_json(tmp_path / "harden.json")
        assert record["settings"] == dataclasses.asdict(SETTINGS)
        assert record["steps"] == 7
        assert record["selection"] == [row["select"] for row in checks]
        assert record["chosen_step"] == choose([Check(**row) for row in record["selection"]], 0.0).step
        assert record["trained_entries"] == len(region_of())
        assert record["state_bytes"] == 20 * len(region_of())
        assert record["dense_state_bytes"] == 3 * 4 * lm.model.num_parameters()
        assert "lowest attack success" in record["reason"]
        assert record["target_reached"] is None
        assert record["over_refusal_rise"] <= 0
        assert record["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
        assert RunDirectory.state_of(tmp_path) == "done"
        assert not (tmp_path / "state.safetensors").exists()

    def test_same_settings_same_bits_and_other_seed_other_bits(self) -> None:
        first, again = (contents(run(tiny_lm(), None, max_over_refusal_rise=1.0)) for _ in range(2))
        assert first == again
        assert contents(run(tiny_lm(), None, max_over_refusal_rise=1.0, seed=1)) != first


class Stop(BaseException):
    """The process was killed."""


class TestInterrupted:
    def stop_at(self, call: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a function of the module fail at its n-th call from now on (0 is the first)."""
        calls = itertools.count()
        original: Callable[..., Any] = getattr(HARDEN_MODULE, name)

        def stopping(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                raise Stop
            return original(*arguments, **options)

        monkeypatch.setattr(HARDEN_MODULE, name, stopping)

    @pytest.mark.parametrize(
        ("name", "call"),
        [
            *(("train_step", call) for call in (0, 1, 3, 6)),
            *(("check", call) for call in (0, 1, 4)),
            ("curriculum", 0),
            ("write_json", 0),
        ],
    )
    def test_continues_to_the_same_result(
        self, name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = contents(run(tiny_lm(), tmp_path / "undisturbed"))
        lm = tiny_lm()
        before = fingerprints(lm.model)
        with monkeypatch.context() as patched:
            self.stop_at(call, name, patched)
            with pytest.raises(Stop):
                run(lm, tmp_path / "killed")
        assert fingerprints(lm.model) == before
        assert RunDirectory.state_of(tmp_path / "killed") == "running"
        assert contents(run(tiny_lm(), tmp_path / "killed")) == expected
        assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "undisturbed")
        assert record_of(tmp_path / "killed") == record_of(tmp_path / "undisturbed")

    @pytest.mark.parametrize("call", [0, 1, 3])
    def test_between_the_log_and_the_state(self, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Killed when a check is in the log but not yet in the state file: it is in the log once."""
        run(tiny_lm(), tmp_path / "undisturbed")
        calls = itertools.count()
        save = HARDEN_MODULE.Progress.save

        def stopping(*arguments: Any) -> None:
            if next(calls) == call:
                raise Stop
            save(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(HARDEN_MODULE.Progress, "save", stopping)
            with pytest.raises(Stop):
                run(tiny_lm(), tmp_path / "killed")
        run(tiny_lm(), tmp_path / "killed")
        assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "undisturbed")

    def test_does_not_repeat_what_was_checked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            self.stop_at(5, "train_step", patched)
            with pytest.raises(Stop):
                run(tiny_lm(), tmp_path)
        done = steps_taken(monkeypatch)
        run(tiny_lm(), tmp_path)
        assert done == [4, 5, 6]

    def test_a_finished_run_gives_its_patch_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = contents(run(tiny_lm(), tmp_path))
        rows = rows_of(tmp_path)
        done = steps_taken(monkeypatch)
        assert contents(run(tiny_lm(), tmp_path)) == first
        assert rows_of(tmp_path) == rows
        assert done == []

    def test_a_folder_of_a_version_without_the_later_settings(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            self.stop_at(5, "train_step", patched)
            with pytest.raises(Stop):
                run(tiny_lm(), tmp_path)
        known = read_json(tmp_path / "run.json")["settings"]
        assert known == {key: value for key, value in dataclasses.asdict(SETTINGS).items() if key not in LATER}
        with pytest.raises(RunError, match=r"target_asr: 0\.1 now, null there"):
            run(tiny_lm(), tmp_path, target_asr=0.1)

    def test_a_damaged_state_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            self.stop_at(3, "train_step", patched)
            with pytest.raises(Stop):
                run(tiny_lm(), tmp_path)
        state = tmp_path / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-50])
        with pytest.raises(RunError, match="is damaged"):
            run(tiny_lm(), tmp_path)


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
            TestInterrupted().stop_at(0, name, patched)
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
        with pytest.raises(NumericalError, match="No step lowered"):
            run(tiny_lm(), tmp_path, judge="unscored", target_asr=0.1)


class TestRefused:
    @pytest.mark.parametrize(
        ("select", "shared"),
        [
            ({"select_harmful": prompt_set("s", ["bad: shout", "BAD  steal!"])}, "s-1 is bad-0"),
            ({"select_harmless": [prompt_set("s", ["good: sea"])]}, "s-0 is good-2"),
            ({"select_harmful": prompt_set("s", ["good: tea"])}, "s-0 is good-0"),
        ],
    )
    def test_sets_that_overlap(self, select: dict[str, PromptSet], shared: str, tmp_path: Path) -> None:
        with pytest.raises(PromptError, match=rf"^1 prompts are both tuned on and measured \({shared}\)"):
            run(tiny_lm(), tmp_path / "out", **select)
        assert not (tmp_path / "out").exists()

    def test_sets_of_one_name(self, tmp_path: Path) -> None:
        with pytest.raises(PromptError, match="Two of the prompt sets are called good; give each a name of its own"):
            run(tiny_lm(), tmp_path / "out", harmless=[HARMLESS, prompt_set("good", ["good: rye"])])
        assert not (tmp_path / "out").exists()

    def test_a_region_of_another_model(self, tmp_path: Path) -> None:
        with pytest.raises(RegionError, match="holds other values than expected"):
            run(tiny_lm(seed=1), tmp_path / "out")
        with pytest.raises(RegionError, match=r"has no parameter|has shape"):
            run(tiny_lm("gpt2"), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_another_run(self, tmp_path: Path) -> None:
        run(tiny_lm(), tmp_path)
        with pytest.raises(RunError, match=r"other settings \(.*help_weight: 1.5 now, 0.5 there"):
            run(tiny_lm(), tmp_path, help_weight=1.5)
        other_prompts = prompt_set("bad", ["bad: steal", "bad: hit"], ["No."] * 2)
        with pytest.raises(RunError, match="other settings"):
            run(tiny_lm(), tmp_path, refusals=other_prompts)
        with pytest.raises(RunError, match=r"other settings \(region"):
            run(tiny_lm(), tmp_path, region_of().sample_like(seed=0))

    @pytest.mark.parametrize("judge", ["complied", "unscored"])
    def test_no_step_is_better(self, judge: str, tmp_path: Path) -> None:
        lm = tiny_lm()
        before = fingerprints(lm.model)
        with pytest.raises(NumericalError, match="No step lowered attack success on the select prompts"):
            run(lm, tmp_path, judge=judge)
        assert fingerprints(lm.model) == before
        assert not (tmp_path / "harden.json").exists()
        assert RunDirectory.state_of(tmp_path) == "running"

    def test_a_loss_that_is_not_finite(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        before = fingerprints(lm.model)
        with pytest.raises(NumericalError, match="not finite"):
            run(lm, tmp_path, learning_rate=1e30, clip=1e30)
        assert fingerprints(lm.model) == before
