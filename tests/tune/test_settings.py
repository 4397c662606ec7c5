"""Settings of hardening that cannot work are refused before anything is done."""

from __future__ import annotations

import dataclasses

import pytest

from ballast.errors import UsageError
from tests.tune.world import SETTINGS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("learning_rate", 0.0),
        ("clip", float("nan")),
        ("help_weight", -1.0),
        ("warmup", 1.0),
        ("check_every", 0),
        ("answers_per_step", -1),
        ("refusals_per_step", 0),
        ("max_over_refusal_rise", -0.1),
        ("target_asr", 1.0),
        ("target_asr", -0.1),
        ("target_asr", float("nan")),
    ],
)
def test_settings_that_cannot_work(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"The setting {name} is {value}; it"):
        dataclasses.replace(SETTINGS, **{name: value})
