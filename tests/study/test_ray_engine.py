"""A real Ray cluster on this machine: the same answers, and a worker that is killed costs nothing."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import psutil
import pytest
import torch

from ballast.errors import UsageError
from ballast.study import RayEngine, study
from ballast.study.engines.base import Done, Job, Result
from tests.study import jobs
from tests.study.world import Here, grid, regions, save_model, write_sets

torch.set_num_threads(1)

PATIENCE = 120.0  # seconds
ROOT = Path(__file__).parents[2]


class Staying:
    """An engine whose cluster stays when a study is done with it: to start one takes seconds."""

    def __init__(self, engine: RayEngine) -> None:
        self.engine = engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, work: Callable[[Job], Result], given: Sequence[Job]) -> Iterator[Done[Job, Result]]:
        return self.engine.run(work, given)


@pytest.fixture(scope="module")
def engine() -> Iterator[Staying]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("RAY_ADDRESS", raising=False)
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
        with RayEngine(2) as running:
            yield Staying(running)


def test_results_and_errors_come_back_with_their_jobs(engine: Staying) -> None:
    found = {done.job: done for done in engine.run(jobs.doubled, [1, 2, 3, 4])}
    assert {job: done.result for job, done in found.items()} == {1: 2, 2: 4, 3: None, 4: None}
    assert found[1].failure is None
    assert found[3].failure == ("Three cannot be opened; give another number.", None)
    failure = found[4].failure
    assert failure is not None
    assert failure.sentence == "ZeroDivisionError"
    assert "in doubled" in (failure.traceback or "")


def test_nothing_is_lost_when_a_worker_is_killed_during_a_study(engine: Staying, tmp_path: Path) -> None:
    save_model(tmp_path / "one")
    write_sets(tmp_path)
    chosen = grid(tmp_path, methods={"snip": {"method": "snip"}, "wanda": {"method": "wanda", "scope": "per_tensor"}})
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after_the_first_cell, args=(tmp_path / "ray" / "cells", killed))
    killer.start()
    found = study(chosen, out=tmp_path / "ray", engine=engine)
    killer.join()
    assert len(killed) == 1
    assert found["state"] == "done", found["failures"]
    study(chosen, out=tmp_path / "here", engine=Here())
    assert regions(tmp_path / "ray") == regions(tmp_path / "here")


def kill_a_worker_after_the_first_cell(cells: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not killed and time.monotonic() < deadline:
        busy = [one for one in psutil.Process().children(recursive=True) if is_busy(one)]
        if busy and list(cells.glob("*.json")):
            killed.append(busy[0].pid)
            busy[0].kill()


def is_busy(process: psutil.Process) -> bool:
    """Whether a process works on a task, which Ray writes into its title."""
    try:
        return process.cmdline()[:1] == ["ray::_quietly"]
    except psutil.NoSuchProcess:
        return False


def test_more_gpus_than_there_are_would_wait_for_ever(engine: Staying) -> None:
    with pytest.raises(UsageError, match=r"A job is to take 64\.5 GPUs"):
        list(RayEngine(1, 64.5).run(jobs.doubled, [1]))


def test_ray_is_told_to_send_nothing(engine: Staying) -> None:
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_job_that_kills_its_worker_twice_is_given_up(engine: Staying, tmp_path: Path) -> None:
    """The last test of the cluster, which has no worker left then."""
    (done,) = engine.run(jobs.dies, [(tmp_path, 3)])
    assert done.failure is not None
    assert done.failure.sentence.startswith("Ray lost the job")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="0 workers with"):
        RayEngine(0)
    with pytest.raises(UsageError, match="with -1 GPUs"):
        RayEngine(1, -1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'ballast-llm\[ray\]'"):
        RayEngine()
