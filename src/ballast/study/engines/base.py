"""What a study asks of an engine: to run jobs in other processes and to tell how each of them ended."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from ballast.errors import BallastError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Failure(NamedTuple):
    """Why a job failed.

    Attributes:
        sentence: In words.
        traceback: Of an error that is no fault of the user's.
    """

    sentence: str
    traceback: str | None = None


class Done(NamedTuple, Generic[Job, Result]):
    """A job that ended.

    Attributes:
        job: As it was given.
        result: What the work returned; None if it failed.
        failure: None if it did not fail.
    """

    job: Job
    result: Result | None
    failure: Failure | None


class Engine(Protocol):
    """Runs jobs in processes that stay between calls; used as a context."""

    def __enter__(self) -> Self:
        """Make ready."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        ...

    def run(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Done[Job, Result]]:
        """Do the work on every job; jobs are given back as they end.

        A job whose process dies is tried once more. Errors of the work end one job and not the others.

        Args:
            work: A function of a module.
            jobs: Can be pickled.
        """
        ...


def failure_of(error: BaseException) -> Failure:
    """What is written down of an error."""
    if isinstance(error, BallastError):
        return Failure(str(error))
    words = " ".join(str(error).split())
    return Failure(
        f"{type(error).__name__}: {words}" if words else type(error).__name__,
        "".join(traceback.format_exception(error)),
    )
