"""The list of judges. A judge is one file, registered by name; asked for by name it is made with its defaults."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ballast.errors import JudgeError
from ballast.judges.base import Judge

JUDGES: dict[str, Callable[[], Judge]] = {}
Kind = TypeVar("Kind", bound=Callable[..., Any])


def register(name: str) -> Callable[[Kind], Kind]:
    """Make a judge available under `name`; for use as a decorator of a class or of a function that makes a judge."""

    def add(kind: Kind) -> Kind:
        JUDGES[name] = kind
        return kind

    return add


def get_judge(judge: str | Judge) -> Judge:
    """The judge with this name, or the given judge itself.

    Raises:
        JudgeError: There is no judge of that name; near names are offered.
    """
    if not isinstance(judge, str):
        return judge
    if judge not in JUDGES:
        near = difflib.get_close_matches(judge, JUDGES, n=3, cutoff=0.3) or sorted(JUDGES)
        raise JudgeError(f"There is no judge {judge!r}; did you mean {', '.join(near)}?")
    return JUDGES[judge]()


def check_lengths(prompts: Sequence[str], answers: Sequence[str]) -> None:
    """Every answer needs its prompt.

    Raises:
        JudgeError: The numbers differ.
    """
    if len(prompts) != len(answers):
        raise JudgeError(f"There are {len(prompts)} prompts but {len(answers)} answers; give one prompt per answer.")
