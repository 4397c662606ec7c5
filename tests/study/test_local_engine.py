"""Processes on this machine: jobs come back, errors too, and dead processes are replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from ballast.errors import UsageError
from ballast.study import LocalEngine
from tests.study import jobs

PATIENCE = 60.0  # seconds


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    """Two workers that stay for all tests: to start one takes seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    with LocalEngine(2) as running:
        yield running
    torch.set_num_threads(threads)


def test_results_and_errors_come_back_with_their_jobs(engine: LocalEngine) -> None:
    found = {done.job: done for done in engine.run(jobs.doubled, [1, 2, 3, 4, 5])}
    assert {job: done.result for job, done in found.items()} == {1: 2, 2: 4, 3: None, 4: None, 5: 10}
    assert found[1].failure is None
    assert found[3].failure == ("Three cannot be opened; give another number.", None)
    failure = found[4].failure
    assert failure is not None
    assert failure.sentence == "ZeroDivisionError"
    assert "in doubled" in (failure.traceback or "")
    assert list(engine.run(jobs.doubled, [])) == []


def test_processes_stay_and_are_others(engine: LocalEngine) -> None:
    first = {done.result for done in engine.run(jobs.process, range(6))}
    assert len(first) == 2
    assert os.getpid() not in first
    assert {done.result for done in engine.run(jobs.process, range(6))} == first


def test_threads_are_divided(engine: LocalEngine) -> None:
    assert {done.result for done in engine.run(jobs.threads, range(4))} == {2}


def test_a_killed_worker_is_replaced_and_its_job_tried_once_more(engine: LocalEngine, tmp_path: Path) -> None:
    """One worker is killed while it has nothing to do; then both of them while they work."""
    before = {done.result for done in engine.run(jobs.process, range(6))}
    victim = next(pid for pid in before if pid is not None)
    kill(victim)
    after = {done.result for done in engine.run(jobs.process, range(6))}
    assert not after & {victim, None}
    for folder in ("once", "twice"):
        (tmp_path / folder).mkdir()
    found = {done.job[1]: done for done in engine.run(jobs.dies, [(tmp_path / "once", 1), (tmp_path / "twice", 2)])}
    assert found[1].result == 1
    assert found[2].result is None
    failure = found[2].failure
    assert failure is not None
    assert failure.sentence.startswith("The worker process died twice at this job")
    lives = [path.name.partition("-")[2] for folder in ("once", "twice") for path in (tmp_path / folder).iterdir()]
    assert len(lives) == 4
    assert len(set(lives)) > 2


def kill(pid: int) -> None:
    """Kill a process and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_worker_is_refused() -> None:
    with pytest.raises(UsageError, match="0 workers do nothing"):
        LocalEngine(0)
