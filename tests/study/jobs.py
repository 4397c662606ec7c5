"""Work for the tests of engines; in a module of its own, so that other processes can import it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from ballast.errors import ModelError


def process(_: object) -> int:
    return os.getpid()


def threads(_: object) -> int:
    return torch.get_num_threads()


def doubled(number: int) -> int:
    """Three is the user's fault, four a bug."""
    if number == 3:
        raise ModelError("Three cannot be opened; give another number.")
    if number == 4:
        raise ZeroDivisionError
    return 2 * number


def dies(job: tuple[Path, int]) -> int:
    """Is killed as many times as the job says; leaves its process number each time."""
    folder, times = job
    lives = len(list(folder.iterdir()))
    (folder / f"{lives}-{os.getpid()}").touch()
    if lives < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return lives
