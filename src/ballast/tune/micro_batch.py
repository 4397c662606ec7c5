"""How many rows go through the model at once: fewer, in more passes, where memory runs out.

The rows of a step stay the same, and so does the mean over their tokens; only the order of its sums changes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from ballast.errors import UsageError
from ballast.models.memory import memory_errors
from ballast.progress import say
from ballast.runs import RunDirectory

Result = TypeVar("Result")


def in_fitting_batches(
    run: RunDirectory, batch_size: int, micro_batch: int, train: Callable[[int], Result], instead: str
) -> Result:
    """Train with a micro-batch, and again from the last state with about half of it as often as memory runs out.

    Args:
        run: Its manifest keeps, under `micro_batch`, what fitted, so that an interrupted run continues with that.
        batch_size: Rows that every micro-batch divides.
        micro_batch: Rows to begin with.
        train: Called with the rows of a micro-batch; continues by itself where an earlier call stopped.
        instead: What to do if not even one row fits, as the end of a sentence.

    Raises:
        UsageError: Not even one row fits.
    """
    rows = int(run.manifest.get("micro_batch", micro_batch))
    while True:
        try:
            with memory_errors():
                return train(rows)
        except MemoryError as error:
            if rows == 1:
                raise UsageError(f"Training on a single row does not fit into memory; {instead}.") from error
        fewer = half(rows, batch_size)
        say(f"Memory ran out with {rows} rows per pass; going on with {fewer}, and as many rows a step as before.")
        run.manifest["micro_batch"] = rows = fewer
        run.save()
        gc.collect()  # trainers hold themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def half(rows: int, batch_size: int) -> int:
    """The largest number of rows up to half of `rows` that divides the batch; at least 1."""
    return next(fewer for fewer in range(max(1, rows // 2), 0, -1) if batch_size % fewer == 0)
