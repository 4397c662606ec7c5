"""A tiny world to harden in: harmful requests begin with `bad`, and an answer that begins with `N` is a refusal."""

from __future__ import annotations

from ballast.tune import HardenSettings
from tests.worlds import prompt_set

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
