"""Several methods over the same prompts in one go: passes over the same rows are made once.

Each method runs in a thread of its own and stops where it asks for a pass. One thread runs at a time, for methods have
hooks on the model while they make passes of their own. When all that still run have stopped, their requests are served
together: equal rows with the same fold of gradients are summed in one backward pass, and who reads inputs of these rows
reads them in its forward part. So a method is written as if it were alone.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import Any, NamedTuple

import torch

from ballast.locate.engine import Fold, accumulate, eligible_parameters, zeros
from ballast.locate.inputs import Reader, read_inputs
from ballast.locate.registry import Found, Method, Task, UnitsFound
from ballast.locate.row_gradients import tells_rows_apart
from ballast.locate.rows import WeightedRow


class Request(NamedTuple):
    """A pass that a method waits for.

    Attributes:
        task: Model and batch size.
        rows: What to run.
        wanted: How to add up gradients, or who reads inputs.
        answer: Gets the sums, or None.
    """

    task: Task
    rows: tuple[WeightedRow, ...]
    wanted: Fold | Reader
    answer: Future[Any]


class SharedPasses:
    """Gathers requests until every running method waits, and then serves them."""

    def __init__(self) -> None:
        self._events: SimpleQueue[Request | None] = SimpleQueue()  # None: a method has ended
        self._turn = Lock()  # held by whoever uses the model

    def gradients(self, task: Task, rows: Sequence[WeightedRow], fold: Fold) -> dict[str, torch.Tensor]:
        """See `Task.gradients`."""
        sums: dict[str, torch.Tensor] = self._asked(Request(task, tuple(rows), fold, Future()))
        return sums

    def inputs(self, task: Task, rows: Sequence[WeightedRow], reader: Reader) -> None:
        """See `Task.inputs`."""
        self._asked(Request(task, tuple(rows), reader, Future()))

    def run(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """The results of all jobs; an error of one is raised when all have ended."""
        with ThreadPoolExecutor(len(jobs)) as pool:
            results = [pool.submit(self._job, job) for job in jobs]
            running, waiting = len(jobs), list[Request]()
            while running:
                event = self._events.get()
                running, waiting = (running - 1, waiting) if event is None else (running, [*waiting, event])
                if waiting and len(waiting) == running:
                    served, waiting = waiting, []
                    with self._turn:
                        serve(served)
        return [result.result() for result in results]

    def _job(self, job: Callable[[], Any]) -> Any:
        try:
            with self._turn:
                return job()
        finally:
            self._events.put(None)

    def _asked(self, request: Request) -> Any:
        self._events.put(request)
        self._turn.release()
        try:
            return request.answer.result()
        finally:
            self._turn.acquire()


def serve(requests: Sequence[Request]) -> None:
    """Make the passes that answer all requests; after an error, those that still wait are told to end."""
    groups: dict[Any, list[Request]] = defaultdict(list)
    for request in requests:
        groups[_frozen(request.rows)].append(request)
    for prompts in [key for key, (first, *_) in groups.items() if _prompts_alone(first.rows)]:
        for key, (first, *_) in sorted(groups.items(), key=lambda item: item[0]):  # whoever asked first
            if key != prompts and _prompts_of(first.rows) == _prompts_of(groups[prompts][0].rows):
                groups[key] += [_at_prompts(request) for request in groups.pop(prompts)]
                break
    try:
        for group in groups.values():
            _serve_group(group)
    finally:
        for request in requests:
            request.answer.cancel()  # does nothing where there is an answer


def _frozen(rows: Sequence[WeightedRow]) -> Any:
    """Equal for equal rows."""
    return tuple((row.id, tuple(row.rendered.ids), row.rendered.prompt_length, row.weight) for row in rows)


def _prompts_alone(rows: Sequence[WeightedRow]) -> bool:
    return all(row.rendered.prompt_length == len(row.rendered.ids) for row in rows)


def _prompts_of(rows: Sequence[WeightedRow]) -> list[list[int]]:
    """Token ids of the prompts, in an order of their own."""
    return sorted(row.rendered.ids[: row.rendered.prompt_length] for row in rows)


def _at_prompts(request: Request) -> Request:
    """The same request in a pass over the prompts with responses; what is read at a prompt depends on it alone."""
    reader = request.wanted
    assert isinstance(reader, Reader)  # prompts alone have no likelihood
    return request._replace(wanted=reader._replace(weigh=lambda batch: reader.weigh(batch.prompts())))


def _serve_group(group: Sequence[Request]) -> None:
    """All requests over the same rows; what can be had in one batched backward pass is."""
    task, rows = group[0].task, group[0].rows
    asked: dict[Fold, list[Request]] = {"sum": [], "absolute": []}
    readers: list[Reader] = []
    for request in group:
        if isinstance(request.wanted, Reader):
            readers.append(request.wanted)
        else:
            asked[request.wanted].append(request)
    run = partial(accumulate, task.lm, rows, batch_size=task.batch_size)
    if asked["sum"]:
        beside = asked["absolute"] and tells_rows_apart(task.lm)
        absolute = zeros(eligible_parameters(task.lm)) if beside else None
        _answer(asked["sum"], run(fold="sum", readers=readers, absolute=absolute))
        if absolute is not None:
            _answer(asked["absolute"], absolute)
        elif asked["absolute"]:
            _answer(asked["absolute"], run(fold="absolute"))
    elif asked["absolute"]:
        _answer(asked["absolute"], run(fold="absolute", readers=readers))
    else:
        read_inputs(task.lm, rows, task.batch_size, readers)
    for request in group:
        if isinstance(request.wanted, Reader):
            request.answer.set_result(None)


def _answer(requests: Sequence[Request], sums: dict[str, torch.Tensor]) -> None:
    """Give each the sums, as tensors of its own."""
    first, *others = requests
    for request in others:
        request.answer.set_result({name: value.clone() for name, value in sums.items()})
    first.answer.set_result(sums)


def found_together(task: Task, methods: Sequence[Method]) -> list[Found | UnitsFound]:
    """What each method finds, with shared passes; as if each were run alone."""
    shared = SharedPasses()
    own = dataclasses.replace(task, passes=shared)
    return shared.run([partial(method.score, own) for method in methods])
