"""The states from which an interrupted training continues, each in a folder that the Trainer of transformers fills."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from ballast.errors import RunError
from ballast.runs import read_json

FOLDER = "checkpoint-"  # what the Trainer names the folder of a step
PICKLE_WRITER = "inline_container"  # in the message of torch.save where a file cannot be written


class State(NamedTuple):
    """A complete state.

    Attributes:
        step: Optimizer steps that were made.
        folder: Where it is.
    """

    step: int
    folder: Path


class StateTrainer(Trainer):
    """A Trainer that says in one sentence that a state cannot be written, and leaves no part of it."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"{FOLDER}{self.state.global_step}"
        with _written(folder):
            super()._save_checkpoint(model, trial)


def last_state(folder: Path) -> State | None:
    """The last complete state in a folder, None if there is none; every other one is removed.

    A state that a kill cut off has no readable `trainer_state.json`, which is written last.
    """
    found = {path: _step(path) for path in folder.glob(f"{FOLDER}*")}
    complete = [State(step, path) for path, step in found.items() if step is not None]
    last = max(complete, default=None)
    for path in found:
        if last is None or path != last.folder:
            shutil.rmtree(path)
    return last


def _step(folder: Path) -> int | None:
    """The step of a state; None if it is not complete."""
    with suppress(RunError):
        return int(read_json(folder / TRAINER_STATE_NAME)["global_step"])
    return None


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and PICKLE_WRITER not in str(error):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"Cannot write {folder} ({reason}); free some disk space and run again.") from error
