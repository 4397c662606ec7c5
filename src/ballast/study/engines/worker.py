"""How a process begins that works for a study."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

import torch
import transformers


def begin(threads: int) -> None:
    """Take part of the processor, print nothing, and end with the process that started this one.

    Args:
        threads: Of torch.
    """
    torch.set_num_threads(threads)
    quiet()
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker waits on a pipe that it holds open itself, and would wait for ever
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def quiet() -> None:
    """Print nothing of opening models: many processes share one terminal."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
