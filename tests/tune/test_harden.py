"""Hardening a tiny model in a tiny world, where an answer that begins with `N` is a refusal."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import NumericalError, PromptError, RegionError, RunError, UsageError
from ballast.judges import JUDGES
from ballast.models.fingerprint import fingerprints
from ballast.prompts import PromptSet
from ballast.runs import JsonLines, RunDirectory, read_json
from ballast.tune.checks import Check, check, choose
from ballast.tune.settings import LATER
from tests.tune.world import (
    HARDEN_MODULE,
    HARMLESS,
    SELECT_HARMFUL,
    SELECT_HARMLESS,
    SETTINGS,
    Stop,
    contents,
    record_of,
    region_of,
    rows_of,
    run,
    steps_taken,
    stop_at,
)
from tests.worlds import OpeningJudge, TableJudge, prompt_set, tiny_lm

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("judges")


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


class TestInterrupted:
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
            stop_at(call, name, patched)
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
            stop_at(5, "train_step", patched)
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
            stop_at(5, "train_step", patched)
            with pytest.raises(Stop):
                run(tiny_lm(), tmp_path)
        known = read_json(tmp_path / "run.json")["settings"]
        assert known == {key: value for key, value in dataclasses.asdict(SETTINGS).items() if key not in LATER}
        with pytest.raises(RunError, match=r"target_asr: 0\.1 now, null there"):
            run(tiny_lm(), tmp_path, target_asr=0.1)

    def test_a_damaged_state_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            stop_at(3, "train_step", patched)
            with pytest.raises(Stop):
                run(tiny_lm(), tmp_path)
        state = tmp_path / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-50])
        with pytest.raises(RunError, match="is damaged"):
            run(tiny_lm(), tmp_path)


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

    def test_no_step_is_better(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        before = fingerprints(lm.model)
        with pytest.raises(NumericalError, match="No step lowered attack success on the select prompts"):
            run(lm, tmp_path, judge="complied")
        assert fingerprints(lm.model) == before
        assert not (tmp_path / "harden.json").exists()
        assert RunDirectory.state_of(tmp_path) == "running"

    @pytest.mark.parametrize("axis", ["harmful", "harmless"])
    def test_no_answer_with_a_verdict(self, axis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A rate over no answers is no rate: nothing is tuned by it."""
        named = SELECT_HARMFUL if axis == "harmful" else SELECT_HARMLESS
        table = {row.prompt: "c" for row in (*SELECT_HARMFUL, *SELECT_HARMLESS)} | {row.prompt: "u" for row in named}
        monkeypatch.setitem(JUDGES, "table", lambda: TableJudge(table))
        done = steps_taken(monkeypatch)
        for _ in range(2):
            with pytest.raises(UsageError, match=f"No answer to the {axis} select prompts got a verdict"):
                run(tiny_lm(), tmp_path, judge="table")
        assert done == []
