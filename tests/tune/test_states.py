"""Fine-tuning that is killed, or runs out of disk, at the worst moments."""

from __future__ import annotations

import dataclasses
import gc
import json
import resource
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import PatchError, RegionError, RunError, UsageError
from ballast.models import open_model
from ballast.models.fingerprint import fingerprints
from ballast.prompts import PromptSet
from ballast.runs import RunDirectory
from ballast.tune import Anchor, LoraSettings, finetune
from ballast.tune.states import State, StateTrainer, last_state
from ballast.tune.training import Training
from tests.tune.finetune_world import SETTINGS, TASK, Stop, losses, region_of
from tests.worlds import tiny_lm

torch.set_num_threads(1)

SHORT = dataclasses.replace(SETTINGS, steps=4, save_every=2)
THREE = PromptSet("three", TASK.prompts[:3])  # with batches of 2: two steps an epoch, of which three end within one
UNEVEN = dataclasses.replace(SHORT, steps=3, batch_size=2)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    ignored, old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


def stop(*_: Any, **__: Any) -> None:
    raise Stop


def state_at(folder: Path, step: int, text: str | None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    if text is not None:
        (path / "trainer_state.json").write_text(text)
    return path


@pytest.mark.parametrize("torn", [None, "", '{"global_step": 1'])
def test_a_state_that_was_cut_off_is_removed(torn: str | None, tmp_path: Path) -> None:
    assert last_state(tmp_path / "none") is None
    whole = state_at(tmp_path, 9, json.dumps({"global_step": 9}))
    state_at(tmp_path, 10, torn)
    assert last_state(tmp_path) == State(9, whole)
    assert list(tmp_path.iterdir()) == [whole]


def test_killed_while_a_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    whole = open_model(finetune(lm, TASK, protect=None, out=tmp_path / "whole", settings=SHORT))
    random_state = StateTrainer._save_rng_state

    def killed(self: StateTrainer, folder: str) -> None:
        if self.state.global_step == 4:
            raise Stop
        random_state(self, folder)

    with monkeypatch.context() as patched:
        patched.setattr(StateTrainer, "_save_rng_state", killed)
        with pytest.raises(Stop):
            finetune(lm, TASK, protect=None, out=tmp_path / "killed", settings=SHORT)
    assert (tmp_path / "killed" / "state" / "checkpoint-4").exists()
    tuned = open_model(finetune(lm, TASK, protect=None, out=tmp_path / "killed", settings=SHORT))
    assert fingerprints(tuned.model) == fingerprints(whole.model)


@pytest.mark.parametrize("share", [0.5, 1.5])  # of the weights: the optimizer holds twice as much
def test_a_full_disk(share: float, tmp_path: Path) -> None:
    lm = tiny_lm()
    weights = sum(value.nbytes for value in lm.model.parameters())
    with disk_of(int(share * weights)), pytest.raises(RunError, match=r"Cannot write .*checkpoint-2 \(.*disk space"):
        finetune(lm, TASK, protect=None, out=tmp_path, settings=SHORT)
    assert not list((tmp_path / "state").iterdir())
    finetune(lm, TASK, protect=None, out=tmp_path, settings=SHORT)


@pytest.mark.parametrize("kind", ["all weights", "region", "adapter", "drifting"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_killed_behind_the_last_step(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    options: dict[str, Any] = {"protect": None if kind in ("all weights", "adapter") else region_of(lm)}
    options |= {"lora": LoraSettings(rank=2)} if kind == "adapter" else {}
    settings = dataclasses.replace(UNEVEN, drifting=0.5, probe_steps=3) if kind == "drifting" else UNEVEN
    stopped = {"drifting": "drifting", "adapter": "save_adapter"}.get(kind, "export")

    def run(folder: str) -> dict[str, str]:
        return fingerprints(open_model(finetune(lm, THREE, out=tmp_path / folder, settings=settings, **options)).model)

    with monkeypatch.context() as patched:
        patched.setitem(finetune.__globals__, stopped, stop)
        with pytest.raises(Stop):
            run("killed")
    assert run("killed") == run("whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 3


def test_killed_before_the_run_says_that_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    save = RunDirectory.save

    def killed(self: RunDirectory) -> None:
        if (self.path / "model").exists():
            raise Stop
        save(self)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "save", killed)
        with pytest.raises(Stop):
            finetune(lm, TASK, protect=None, out=tmp_path, settings=SHORT)
    before = fingerprints(open_model(tmp_path / "model").model)
    assert fingerprints(open_model(finetune(lm, TASK, protect=None, out=tmp_path, settings=SHORT)).model) == before


def test_a_model_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "theirs").touch()
    with pytest.raises(PatchError, match="model is not empty"):
        finetune(tiny_lm(), TASK, protect=None, out=tmp_path, settings=SHORT)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "theirs"]


def test_the_model_of_the_probe_is_gone_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[weakref.ref[Any]] = []
    alive: list[int] = []
    copy = Training._copy

    def counted(self: Training) -> Any:
        alive.append(sum(one() is not None for one in copies))
        found = copy(self)
        copies.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Training, "_copy", counted)
    lm = tiny_lm()
    settings = dataclasses.replace(SHORT, drifting=0.5, probe_steps=2)
    region = region_of(lm)
    gc.disable()
    try:
        finetune(lm, TASK, protect=region, out=tmp_path, settings=settings)
    finally:
        gc.enable()
    assert alive == [0, 0]


@pytest.mark.parametrize("options", [{}, {"lora": LoraSettings(rank=2)}])
def test_a_region_of_another_model_is_refused_first(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="holds other values"):
        finetune(tiny_lm(seed=1), TASK, protect=region_of(tiny_lm()), out=tmp_path, settings=SHORT, **options)
    assert not list(tmp_path.iterdir())


def test_an_anchor_that_cannot_pull(tmp_path: Path) -> None:
    lm = tiny_lm()
    region = region_of(lm)
    with pytest.raises(UsageError, match="are protected and cannot move"):
        finetune(lm, TASK, protect=region, anchor=Anchor.of_region(region, 1.0), out=tmp_path, settings=SHORT)
    assert not list(tmp_path.iterdir())


def test_a_region_located_in_another_dtype(tmp_path: Path) -> None:
    """The same numbers, in a model that was opened wider or narrower."""
    narrow, wide = tiny_lm(dtype=torch.bfloat16), tiny_lm(dtype=torch.bfloat16)
    wide.model.float()
    for one, other in ((narrow, wide), (wide, narrow)):
        settings = dataclasses.replace(SHORT, steps=1)
        finetune(other, TASK, protect=region_of(one), out=tmp_path / str(other.model.dtype), settings=settings)
