"""The engine of one machine: processes, one job at a time in each."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self

import torch

from ballast.errors import UsageError
from ballast.study.engines.base import Done, Failure, Job, Result, failure_of
from ballast.study.engines.worker import begin

TRIES = 2
DIED = Failure(
    "The worker process died twice at this job, as it does when memory runs out; use fewer workers, fewer methods or a "
    "smaller batch_size."
)


class LocalEngine:
    """Processes on this machine.

    Every worker is a pool of one process with one job in it, so that it is known which job a process died of.
    """

    def __init__(self, workers: int = 1) -> None:
        """Nothing is started yet; a process starts with its first job.

        Args:
            workers: How many; the threads of torch are divided among them.

        Raises:
            UsageError: There is none.
        """
        if workers < 1:
            raise UsageError(f"{workers} workers do nothing; ask for at least 1.")
        self._threads = max(1, torch.get_num_threads() // workers)
        self._count = workers
        self._workers: list[ProcessPoolExecutor] = []

    def __enter__(self) -> Self:
        """Make ready to start processes."""
        self._workers = [self._started() for _ in range(self._count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes, after the jobs that run now."""
        for worker in self._workers:
            worker.shutdown(cancel_futures=True)

    def run(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Done[Job, Result]]:
        """See `Engine.run`."""
        waiting = deque((job, 1) for job in jobs)
        running: dict[Future[Result], tuple[int, Job, int]] = {}
        idle = list(range(len(self._workers)))
        while waiting or running:
            while idle and waiting:
                number = idle.pop(0)
                job, attempt = waiting.popleft()
                running[self._submitted(number, work, job)] = (number, job, attempt)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, job, attempt = running.pop(future)
                idle.append(number)
                error = future.exception()
                if error is None:
                    yield Done(job, future.result(), None)
                    continue
                if not isinstance(error, BrokenProcessPool):
                    yield Done(job, None, failure_of(error))
                    continue
                self._replace(number)
                if attempt < TRIES:
                    waiting.appendleft((job, attempt + 1))
                else:
                    yield Done(job, None, DIED)

    def _submitted(self, number: int, work: Callable[[Job], Result], job: Job) -> Future[Result]:
        try:
            return self._workers[number].submit(work, job)
        except BrokenProcessPool:  # it died while it had nothing to do
            self._replace(number)
            return self._workers[number].submit(work, job)

    def _replace(self, number: int) -> None:
        self._workers[number].shutdown()
        self._workers[number] = self._started()

    def _started(self) -> ProcessPoolExecutor:
        context: Any = multiprocessing.get_context("spawn")  # torch has threads, which do not survive a fork
        return ProcessPoolExecutor(1, mp_context=context, initializer=begin, initargs=(self._threads,))
