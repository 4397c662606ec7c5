"""Memory that runs out, in one form: torch says it in several, and Python in another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ballast.errors import UsageError

SAID_BY_TORCH = ("out of memory", "not enough memory", "can't allocate memory")  # on the CPU in a plain RuntimeError


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise a MemoryError for whatever the block raises because memory ran out; other errors pass."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in SAID_BY_TORCH):
            raise MemoryError(str(error)) from error
        raise


@contextmanager
def must_fit(otherwise: str) -> Iterator[None]:
    """Raise a UsageError that says `otherwise`, one sentence, if memory runs out inside the block."""
    try:
        with memory_errors():
            yield
    except MemoryError as error:
        raise UsageError(otherwise) from error
