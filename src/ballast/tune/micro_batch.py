"""How many rows go through the model at once: fewer, in more passes, where memory runs out.

The rows of a step stay the same, and so does the mean over their tokens; only the order of its sums changes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from ballast.errors import UsageError
from ballast.progress import say
from ballast.runs import RunDirectory

Result = TypeVar("Result")


def in_fitting_batches(run: RunDirectory, batch_size: int, micro_batch: int, train: Callable[[int], Result]) -> Result:
    """Train with a micro-batch, and again from the last state with about half of it as often as memory runs out.

    Args:
        run: Its manifest keeps, under `micro_batch`, what fitted, so that an interrupted run continues with that.
        batch_size: Rows of one step; every micro-batch divides it.
        micro_batch: Rows to begin with.
        train: Called with the rows of a micro-batch; continues by itself where an earlier call stopped.

    Raises:
        UsageError: Not even one row fits.
    """
    rows = int(run.manifest.get("micro_batch", micro_batch))
    while True:
        try:
            return train(rows)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if rows == 1:
                raise UsageError(
                    "Fine-tuning a single row does not fit into memory; cut the rows shorter (max_length), train with "
                    "LoRA or use a larger machine."
                ) from error
        fewer = half(rows, batch_size)
        say(f"Memory ran out with {rows} rows per pass; going on with {fewer}, still {batch_size} rows a step.")
        run.manifest["micro_batch"] = rows = fewer
        run.save()
        gc.collect()  # trainers hold themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def half(rows: int, batch_size: int) -> int:
    """The largest number of rows up to half of `rows` that divides the batch; at least 1."""
    return next(fewer for fewer in range(max(1, rows // 2), 0, -1) if batch_size % fewer == 0)
