"""A tiny world to harden in: harmful requests begin with `bad`, and an answer that begins with `N` is a refusal."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.locate import locate
from ballast.models import LanguageModel
from ballast.patches import Patch
from ballast.regions import Region
from ballast.runs import JsonLines, read_json
from ballast.tune import HardenSettings, harden
from ballast.tune.step import train_step
from tests.worlds import prompt_set, tiny_lm

REFUSALS = prompt_set("bad", ["bad: steal", "bad: hit", "bad: lie", "bad: burn"], ["No."] * 4)
HARMLESS = prompt_set("good", ["good: tea", "good: sun", "good: sea"])
SELECT_HARMFUL = prompt_set("select_bad", ["bad: shout", "bad: break", "bad: tear"])
SELECT_HARMLESS = prompt_set("select_good", ["good: fun", "good: rain"])
SETTINGS = HardenSettings(
    steps=7,
    learning_rate=5e-3,
    warmup=0.0,
    refusals_per_step=3,
    answers_per_step=3,
    refusal_tokens=3,
    micro_batch=4,
    help_weight=0.5,
    answer_tokens=4,
    check_every=2,
    check_tokens=3,
    judge="opening",
    max_over_refusal_rise=0.0,
)

HARDEN_MODULE = importlib.import_module("ballast.tune.harden")  # the package gives the function of that name


@cache
def region_of(dtype: torch.dtype = torch.float32) -> Region:
    scores = locate(tiny_lm(dtype=dtype), prompt_set("locate", ["bad: rob"], ["No."]), "gradient")
    return scores.select(0.2)


def run(
    lm: LanguageModel,
    out: Path | None,
    region: Region | None = None,
    given: HardenSettings = SETTINGS,
    **changes: Any,
) -> Patch:
    """Harden in the tiny world; `changes` are of the settings or of the prompts."""
    fields = {field.name for field in dataclasses.fields(HardenSettings)}
    prompts: dict[str, Any] = {
        "refusals": REFUSALS,
        "harmless": [HARMLESS],
        "select_harmful": SELECT_HARMFUL,
        "select_harmless": [SELECT_HARMLESS],
        **{name: value for name, value in changes.items() if name not in fields},
    }
    settings = dataclasses.replace(given, **{name: value for name, value in changes.items() if name in fields})
    return harden(lm, region or region_of(), **prompts, settings=settings, out=out)


def contents(patch: Patch) -> dict[str, list[list[float]]]:
    return {name: [part.tolist() for part in entries] for name, entries in patch.entries.items()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in JsonLines(folder / "harden.jsonl").rows
    ]


def record_of(folder: Path) -> dict[str, Any]:
    """`harden.json` without what a clock says."""
    return {key: value for key, value in read_json(folder / "harden.json").items() if key != "seconds"}


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every optimizer step (0-based) that is taken from now on."""
    done: list[int] = []

    def counting(*arguments: Any) -> dict[str, float]:
        done.append(arguments[-1])
        return train_step(*arguments)

    monkeypatch.setattr(HARDEN_MODULE, "train_step", counting)
    return done


class Stop(BaseException):
    """The process was killed."""


def stop_at(call: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function of the module fail at its n-th call from now on (0 is the first)."""
    calls = itertools.count()
    original: Callable[..., Any] = getattr(HARDEN_MODULE, name)

    def stopping(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise Stop
        return original(*arguments, **options)

    monkeypatch.setattr(HARDEN_MODULE, name, stopping)
