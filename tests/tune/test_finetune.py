"""Fine-tuning with a protected region: what is learnt, what stays, what continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import NumericalError, PromptError, RunError, UsageError
from ballast.locate import locate
from ballast.models import LanguageModel, open_model
from ballast.models.fingerprint import fingerprints
from ballast.regions import Region
from ballast.tune import FinetuneSettings, finetune
from ballast.tune.finetune import Log, collated, tokenized
from tests.tune.test_safety_preserving import bits, changed
from tests.worlds import REFUSALS, REQUESTS, prompt_set, tiny_lm

torch.set_num_threads(1)

HARMFUL = prompt_set("harmful", REQUESTS, REFUSALS)
TASK = prompt_set("task", ["Add 1 and 1", "Add 1 and 2", "Add 2 and 2", "Add 3 and 2"], ["2", "3", "4", "5"])
SETTINGS = FinetuneSettings(
    steps=20, learning_rate=5e-3, batch_size=4, micro_batch=2, save_every=5, mixed_precision=False, weight_decay=0.1
)


def region_of(lm: LanguageModel) -> Region:
    return locate(lm, HARMFUL, "gradient").select(0.1)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "finetune.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_the_task_and_keeps_the_region(dtype: torch.dtype, mixed_precision: bool, tmp_path: Path) -> None:
    lm = tiny_lm(dtype=dtype)
    region, before, whole = region_of(lm), bits(lm.model), fingerprints(lm.model)
    settings = FinetuneSettings(
        steps=20, learning_rate=5e-3, batch_size=4, micro_batch=4, mixed_precision=mixed_precision
    )
    checkpoint = finetune(lm, TASK, protect=region, out=tmp_path, settings=settings)
    assert fingerprints(lm.model) == whole
    tuned = open_model(checkpoint)
    assert tuned.model.dtype == dtype
    inside, outside = changed(before, tuned.model, region)
    assert inside == 0
    assert outside > 0.5
    found = losses(tmp_path)
    assert len(found) == 20
    assert found[-1] < 0.5 * found[0]


def test_without_protection_the_region_moves(tmp_path: Path) -> None:
    lm = tiny_lm()
    region, before = region_of(lm), bits(lm.model)
    inside, _ = changed(
        before, open_model(finetune(lm, TASK, protect=None, out=tmp_path, settings=SETTINGS)).model, region
    )
    assert inside > 0.9 * len(region)


class Stop(BaseException):
    """The process was killed."""


@pytest.mark.parametrize("at", [3, 7, 20])
def test_continues_with_the_same_bits(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    region = region_of(lm)
    expected = fingerprints(
        open_model(finetune(lm, TASK, protect=region, out=tmp_path / "whole", settings=SETTINGS)).model
    )
    log = Log.on_log

    def stopping(self: Log, args: Any, state: Any, control: Any, **named: Any) -> None:
        log(self, args, state, control, **named)
        if state.global_step == at:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(Log, "on_log", stopping)
        with pytest.raises(Stop):
            finetune(lm, TASK, protect=region, out=tmp_path / "killed", settings=SETTINGS)
    checkpoint = finetune(lm, TASK, protect=region, out=tmp_path / "killed", settings=SETTINGS)
    assert fingerprints(open_model(checkpoint).model) == expected
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert finetune(lm, TASK, protect=region, out=tmp_path / "killed", settings=SETTINGS) == checkpoint
    with pytest.raises(RunError, match="holds a run with other settings"):
        finetune(lm, TASK, protect=None, out=tmp_path / "killed", settings=SETTINGS)


def test_only_responses_are_learnt() -> None:
    lm = tiny_lm()
    rows = tokenized(lm, TASK, 100)
    batch = collated(rows, lm.pad_id)
    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        learnt = [label for label in labels if label != -100]
        assert learnt == row.ids[row.prompt_length :]


class TestBadInput:
    def test_rows_without_responses(self, tmp_path: Path) -> None:
        with pytest.raises(PromptError, match="bare-0 has no response"):
            finetune(tiny_lm(), prompt_set("bare", ["Hi"]), protect=None, out=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_prompts_that_leave_no_room(self) -> None:
        with pytest.raises(PromptError, match="leaves none to its response"):
            tokenized(tiny_lm(), TASK, 8)

    def test_a_loss_that_is_not_finite(self, tmp_path: Path) -> None:
        settings = FinetuneSettings(steps=40, learning_rate=1e8, batch_size=4, micro_batch=4, mixed_precision=False)
        with pytest.raises(NumericalError, match="is not finite; use a lower learning rate"):
            finetune(tiny_lm(), TASK, protect=None, out=tmp_path, settings=settings)
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"steps": 0}, "steps is 0"),
            ({"learning_rate": 0.0}, "must be above 0"),
            ({"weight_decay": -1.0}, "must not be negative"),
            ({"warmup": 1.0}, "share of the steps"),
            ({"batch_size": 3, "micro_batch": 2}, "no whole number of micro-batches"),
        ],
    )
    def test_settings(self, setting: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            FinetuneSettings(**setting)
