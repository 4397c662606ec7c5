"""A small task to fine-tune a tiny model on, and a way to be killed on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ballast.locate import locate
from ballast.models import LanguageModel
from ballast.regions import Region
from ballast.tune import FinetuneSettings
from ballast.tune.finetune_log import Log
from tests.worlds import REFUSALS, REQUESTS, prompt_set

HARMFUL = prompt_set("harmful", REQUESTS, REFUSALS)
TASK = prompt_set("task", ["Add 1 and 1", "Add 1 and 2", "Add 2 and 2", "Add 3 and 2"], ["2", "3", "4", "5"])
SETTINGS = FinetuneSettings(
    steps=20, learning_rate=5e-3, batch_size=4, micro_batch=2, save_every=5, mixed_precision=False, weight_decay=0.1
)


def region_of(lm: LanguageModel) -> Region:
    return locate(lm, HARMFUL, "gradient").select(0.1)


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "finetune.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows_of(folder)]


class Stop(BaseException):
    """The process was killed."""


def stopping_at(step: int) -> Callable[..., None]:
    """`Log.on_log`, and then an end at this step."""
    log = Log.on_log

    def stopping(self: Log, args: Any, state: Any, control: Any, **named: Any) -> None:
        log(self, args, state, control, **named)
        if state.global_step == step:
            raise Stop

    return stopping
