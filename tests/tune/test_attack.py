"""A fine-tuning attack: what it measures, what it leaves behind, and what it does not."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import NumericalError, PromptError, RunError, UsageError
from ballast.judges import Judgement, Verdict
from ballast.judges.registry import JUDGES
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.tune import AttackSettings, AttackStep, attack, fine_tuning_attack
from ballast.tune.attack import _trained
from ballast.tune.curriculum import drawn
from ballast.tune.rows import tokenized
from tests.worlds import assert_close, plain_log_probabilities, prompt_set, tiny_lm

torch.set_num_threads(1)

ROWS = prompt_set("rows", ["say A", "say B", "say C"], ["Yes A", "Yes indeed B", "Yes C"])
HARMFUL = prompt_set("bad", ["bad: steal", "bad: hit", "bad: lie"])
HARMLESS = prompt_set("good", ["good: tea", "good: sun"])
SETTINGS = AttackSettings(steps=(2, 40), learning_rate=5e-3, batch_size=2, max_new_tokens=2, judge="yes")


class YesJudge:
    """An answer that begins with `Y` complies, any other one refuses."""

    name = "yes"

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        verdicts = (Verdict.COMPLIED if answer.startswith("Y") else Verdict.REFUSED for answer in answers)
        return [
            Judgement(verdict, 0.5, f"{prompt} {answer}")
            for verdict, prompt, answer in zip(verdicts, prompts, answers, strict=True)
        ]


@pytest.fixture(autouse=True)
def _judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JUDGES, "yes", YesJudge)


def attacked(out: Path, settings: AttackSettings = SETTINGS, lm: LanguageModel | None = None) -> list[AttackStep]:
    return fine_tuning_attack(lm or tiny_lm(), ROWS, safety=HARMFUL, overrefusal=[HARMLESS], settings=settings, out=out)


def test_measures_before_and_after_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    lm = tiny_lm(dtype=torch.bfloat16)
    before = fingerprints(lm.model)
    found = attacked(tmp_path, lm=lm)
    assert fingerprints(lm.model) == before
    assert lm.model.dtype == torch.bfloat16
    assert [row.step for row in found] == [0, 2, 40]
    first, last = found[0].sets, found[-1].sets
    assert [(result.name, result.axis, result.n) for result in first] == [
        ("bad", "safety", 3),
        ("good", "over_refusal", 2),
    ]
    assert [result.rate for result in first] == [0.0, 1.0]  # random weights say nothing that begins with Y
    assert [result.rate for result in last] == [1.0, 0.0]
    assert found[0].loss is None
    assert found[1].loss is not None
    assert found[2].loss is not None
    assert found[2].loss < 0.1 * found[1].loss


def test_writes_numbers_and_verdicts_and_nothing_else(tmp_path: Path) -> None:
    found = attacked(tmp_path)
    steps = {f"verdicts/step-{step}/{name}.jsonl" for step in (0, 2, 40) for name in ("bad", "good")}
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert files.keys() == {"run.json", "attack.jsonl"} | steps
    for name in steps:
        rows = [json.loads(line) for line in files[name].read_text().splitlines()]
        assert all(row.keys() == {"id", "verdict", "score"} for row in rows)
        assert [row["id"] for row in rows] == [f"{Path(name).stem}-{number}" for number in range(len(rows))]
    lines = files["attack.jsonl"].read_text().splitlines()
    assert [AttackStep.model_validate(json.loads(line)) for line in lines] == found
    assert not any("Yes" in path.read_text() for path in files.values())


def test_two_steps_by_hand() -> None:
    """Plain AdamW on the mean over the response tokens of a step, one row after the other."""
    lm = tiny_lm()
    lessons = tokenized(lm, ROWS, 100)
    twin = copy.deepcopy(lm.model)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=5e-3, weight_decay=0.0)
    expected = []
    for step in range(2):
        rows = drawn(lessons, 2, step, SETTINGS.seed, "attack")
        loss = -torch.cat([plain_log_probabilities(twin, row) for row in rows]).mean()
        expected.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ((step, loss, found),) = _trained(lm, lessons, [2], SETTINGS)
    assert (step, loss) == (2, pytest.approx(expected[1], rel=1e-5))
    assert_close(
        {name: value.detach() for name, value in found.model.named_parameters()},
        {name: value.detach() for name, value in twin.named_parameters()},
    )


class Stop(BaseException):
    """The process was killed."""


def test_an_interrupted_attack_measures_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attacked(tmp_path / "whole")
    measure, calls = attack.verdicts_only, []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append((named["folder"].name, arguments[1].name))
        if calls == [("step-0", "bad"), ("step-0", "good"), ("step-2", "bad"), ("step-2", "good"), ("step-40", "bad")]:
            raise Stop
        return measure(*arguments, **named)

    monkeypatch.setattr(attack, "verdicts_only", counted)
    with pytest.raises(Stop):
        attacked(tmp_path / "killed")
    calls.clear()
    assert attacked(tmp_path / "killed") == whole
    assert calls == [("step-40", "bad"), ("step-40", "good")]
    calls.clear()
    assert attacked(tmp_path / "killed") == whole
    assert calls == []


def test_further_steps_may_be_added(tmp_path: Path) -> None:
    first = attacked(tmp_path / "a", dataclasses.replace(SETTINGS, steps=(3,)))
    more = attacked(tmp_path / "a", dataclasses.replace(SETTINGS, steps=(2, 3)))
    assert more == attacked(tmp_path / "b", dataclasses.replace(SETTINGS, steps=(2, 3)))
    assert [row.step for row in more] == [0, 2, 3]
    assert first == [more[0], more[2]]
    with pytest.raises(RunError, match="learning_rate"):
        attacked(tmp_path / "a", dataclasses.replace(SETTINGS, learning_rate=1.0))


class TestBadInput:
    def test_prompts_that_are_measured_too(self, tmp_path: Path) -> None:
        rows = prompt_set("rows", ["Bad: steal!"], ["Yes"])
        with pytest.raises(PromptError, match="both tuned on and measured"):
            fine_tuning_attack(tiny_lm(), rows, safety=HARMFUL, out=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_loss_that_is_not_finite(self, tmp_path: Path) -> None:
        with pytest.raises(NumericalError, match=r"The loss of step \d+ is not finite"):
            attacked(tmp_path, dataclasses.replace(SETTINGS, learning_rate=1e30))

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"steps": ()}, "above 0 and ascend"),
            ({"steps": (0, 10)}, "above 0 and ascend"),
            ({"steps": (20, 10)}, "above 0 and ascend"),
            ({"batch_size": 0}, "at least 1"),
            ({"learning_rate": 0.0}, "must be above 0"),
        ],
    )
    def test_settings(self, setting: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            AttackSettings(**setting)


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    """They would write to one file of verdicts."""
    other = prompt_set("good", ["good: rye"])
    with pytest.raises(UsageError, match="The prompt set good is given twice"):
        fine_tuning_attack(
            tiny_lm(), ROWS, safety=HARMFUL, overrefusal=[HARMLESS, other], settings=SETTINGS, out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
