"""A progress bar for loops that may take longer than a second; silent unless the command line asks for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
_console: ContextVar[Console | None] = ContextVar("console", default=None)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # all but the end of a line


@contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Show the bars of all `track` loops inside the block on `console`."""
    token = _console.set(console)
    try:
        yield
    finally:
        _console.reset(token)


def printable(text: str) -> str:
    """The text with control characters written out: a name from a file must not steer the terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def say(text: str) -> None:
    """Say one line on standard error, beside the bars."""
    console = _console.get() or Console(stderr=True)
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False, emoji=False)


def track(items: Sequence[Item], description: str, done: int = 0) -> Iterator[Item]:
    """Go through `items`, showing how many are done and the time left.

    Args:
        items: What is still to do.
        description: What is being done, for a reader.
        done: How many were done in an earlier call; counted in, not given again.
    """
    console = _console.get()
    if console is None:
        yield from items
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=False) as bar:
        task = bar.add_task(printable(description), total=done + len(items), completed=done)
        for item in items:
            yield item
            bar.advance(task)
