"""The engine of many machines: Ray schedules, retries and divides GPUs. Workers and caller share a file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from ballast.errors import UsageError
from ballast.study.engines.base import Done, Failure, Job, Result, failure_of
from ballast.study.engines.worker import quiet

ENVIRONMENT = {  # read when Ray is imported and when a cluster starts
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_task_oom_retries": "1",  # as after any other death; Ray's own number has no end
}


class RayEngine:
    """Tasks of a Ray cluster: that of RAY_ADDRESS, or one on this machine for the time of the study."""

    def __init__(self, workers: int = 1, gpus_per_job: float = 0.0) -> None:
        """Nothing is started yet.

        Args:
            workers: Jobs at the same time, without RAY_ADDRESS; a cluster runs as many as it has processors for.
            gpus_per_job: GPUs that a job takes; 0.5 lets two share one.

        Raises:
            UsageError: A number is too small, or the extra `ray` is not installed.
        """
        if workers < 1 or gpus_per_job < 0:
            raise UsageError(f"{workers} workers with {gpus_per_job} GPUs a job cannot work; ask for at least 1 and 0.")
        os.environ |= ENVIRONMENT
        try:
            import ray
        except ImportError as error:
            raise UsageError("The engine ray needs an extra package; run `pip install 'ballast-llm[ray]'`.") from error
        self._ray: Any = ray
        self._workers, self._gpus = workers, gpus_per_job

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one."""
        address = os.environ.get("RAY_ADDRESS")
        own = {} if address else {"num_cpus": self._workers, "include_dashboard": False}
        self._ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()

    def run(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Done[Job, Result]]:
        """See `Engine.run`."""
        there = self._ray.cluster_resources().get("GPU", 0)
        if self._gpus > there and "RAY_ADDRESS" not in os.environ:  # Ray would wait for more
            raise UsageError(f"A job is to take {self._gpus} GPUs and this machine has {there:g}; ask for fewer.")
        task = self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=1)(_quietly)
        waiting = {task.remote(work, job): job for job in jobs}
        while waiting:
            (ended,), _ = self._ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ended)
            try:
                result = self._ray.get(ended)
            except self._ray.exceptions.RayTaskError as error:
                failure = failure_of(error.cause)
                yield Done(job, None, failure._replace(traceback=failure.traceback and str(error)))
            except self._ray.exceptions.RayError as error:  # the worker died twice, or its machine is gone
                yield Done(job, None, Failure(f"Ray lost the job: {' '.join(str(error).split())}"))
            else:
                yield Done(job, result, None)


def _quietly(work: Callable[[Job], Result], job: Job) -> Result:
    quiet()
    return work(job)
