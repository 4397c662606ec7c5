"""The loss of every step, how far training is, and where it has to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ballast.errors import NumericalError
from ballast.progress import track
from ballast.runs import JsonLines
from ballast.tune.states import last_state


class Log(TrainerCallback):
    """Keeps the loss of every step, shows how far training is, and stops where a loss is not finite."""

    def __init__(self, path: Path) -> None:
        """Continue the file at `path`."""
        self._lines = JsonLines(path)
        self._bar: Iterator[int] = iter(())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop what was logged behind the state that training continues from."""
        self._lines.keep(lambda row: row["step"] <= state.global_step)
        self._bar = track(range(state.global_step, args.max_steps), "Fine-tuning", state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        next(self._bar)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the bar."""
        next(self._bar, None)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write one row."""
        if logs is None or "loss" not in logs:
            return
        row: dict[str, float] = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
        if not all(map(math.isfinite, row.values())):
            raise _not_finite(f"The loss of step {state.global_step}", args)
        self._lines.append([{"step": state.global_step} | row])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Look at the weights before they take the place of the last state."""
        last = control.should_save or state.global_step == args.max_steps
        if last and not all(bool(torch.isfinite(value).all()) for value in named["model"].parameters()):
            raise _not_finite(f"A weight after step {state.global_step}", args)


def _not_finite(what: str, args: TrainingArguments) -> NumericalError:
    kept = last_state(Path(str(args.output_dir)))
    where = f"the last good state is {kept.folder}" if kept else "no state was saved before"
    return NumericalError(f"{what} is not finite; use a lower learning rate in a new folder ({where}).")
