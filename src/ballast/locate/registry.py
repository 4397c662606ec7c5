"""The list of identification methods. A method is one file: a frozen dataclass of its settings, registered by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from ballast.errors import UsageError
from ballast.locate.engine import Fold, accumulate
from ballast.locate.inputs import Reader, read_inputs
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel
from ballast.models.units import UnitGroup
from ballast.prompts import PromptSet
from ballast.regions.metadata import Granularity


class Passes(Protocol):
    """Who makes the passes that methods ask for."""

    def gradients(self, task: Task, rows: Sequence[WeightedRow], fold: Fold) -> dict[str, torch.Tensor]:
        """See `Task.gradients`."""
        ...

    def inputs(self, task: Task, rows: Sequence[WeightedRow], reader: Reader) -> None:
        """See `Task.inputs`."""
        ...


class OnePassEach:
    """Every request is a pass of its own."""

    def gradients(self, task: Task, rows: Sequence[WeightedRow], fold: Fold) -> dict[str, torch.Tensor]:
        """See `Task.gradients`."""
        return accumulate(
            task.lm,
            rows,
            fold=fold,
            batch_size=task.batch_size,
            checkpoint=task.checkpoint,
            checkpoint_seconds=task.checkpoint_seconds,
        )

    def inputs(self, task: Task, rows: Sequence[WeightedRow], reader: Reader) -> None:
        """See `Task.inputs`."""
        read_inputs(task.lm, rows, task.batch_size, [reader])


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Attributes:
        lm: The model; its weights must be unchanged afterwards.
        prompts: Harmful prompts.
        seed: Seed of everything random.
        batch_size: Rows per pass where a method may choose.
        checkpoint: File for the state of an interrupted pass, if the work shall be resumable.
        checkpoint_seconds: Least time between two writes of it.
        passes: Who makes the passes.
    """

    lm: LanguageModel
    prompts: PromptSet
    seed: int = 0
    batch_size: int = 8
    checkpoint: Path | None = None
    checkpoint_seconds: float = 60.0
    passes: Passes = dataclasses.field(default_factory=OnePassEach)

    def gradients(self, rows: Sequence[WeightedRow], fold: Fold) -> dict[str, torch.Tensor]:
        """The sums of `accumulate` over `rows` with this task's batch size and checkpoint."""
        return self.passes.gradients(self, rows, fold)

    def inputs(self, rows: Sequence[WeightedRow], reader: Reader) -> None:
        """Show what every projection reads in a pass over `rows`, see `read_inputs`."""
        self.passes.inputs(self, rows, reader)


@dataclass(frozen=True)
class Found:
    """What a method gives back.

    Attributes:
        scores: Non-negative fp32 score of every eligible weight, by parameter name; larger is more important.
        notes: Counts and facts that belong into the record, such as prompts used and dropped.
    """

    scores: Mapping[str, torch.Tensor]
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class UnitsFound:
    """What a method of neurons, heads or layers gives back.

    Attributes:
        groups: The units that were scored.
        scores: (m,) fp32 per group, non-negative; larger is more important.
        chosen: Numbers of the units that the method itself chose, per group; None if it leaves that to the selection.
        notes: As in `Found`; units that could not be scored are named there.
    """

    groups: Sequence[UnitGroup]
    scores: Sequence[torch.Tensor]
    chosen: Sequence[torch.Tensor] | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


class Method(Protocol):
    """A way to score weights or units. Implementations are frozen dataclasses whose fields are the settings."""

    name: ClassVar[str]
    granularity: ClassVar[Granularity]
    reference: ClassVar[str]
    fidelity: ClassVar[str]
    needs: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def score(self, task: Task) -> Found | UnitsFound:
        """Score every eligible weight, or every unit."""
        ...


METHODS: dict[str, type[Any]] = {}
Kind = TypeVar("Kind", bound=type[Any])


def register(name: str) -> Callable[[Kind], Kind]:
    """Make a method available under `name`; for use as a class decorator."""

    def add(kind: Kind) -> Kind:
        kind.name = name
        METHODS[name] = kind
        return kind

    return add


def reads_responses(method: Method) -> bool:
    """Whether scores depend on the responses of prompts; those methods have `refusals`, for prompts without one."""
    return "refusals" in method.__dataclass_fields__


def get_method(method: str | Method, **settings: Any) -> Method:
    """The method with this name and these settings, or the given method itself.

    Raises:
        UsageError: The name or a setting is unknown; near names are offered.
    """
    if not isinstance(method, str):
        if settings:
            raise UsageError(f"The settings {', '.join(sorted(settings))} must be given to the method object itself.")
        return method
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=3, cutoff=0.3) or sorted(METHODS)
        raise UsageError(f"There is no method {method!r}; did you mean {', '.join(near)}?")
    fields = {field.name for field in dataclasses.fields(METHODS[method])}
    for setting in settings.keys() - fields:
        raise UsageError(
            f"The method {method} has no setting {setting!r}; it has {', '.join(sorted(fields)) or 'none'}."
        )
    several = {field.name for field in dataclasses.fields(METHODS[method]) if isinstance(field.default, tuple)}
    given = {
        name: (value,) if name in several and isinstance(value, str) else value for name, value in settings.items()
    }
    made: Method = METHODS[method](**given)
    return made
