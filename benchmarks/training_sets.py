"""Public prompt sets to tune on, without anything that resembles what is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ballast import PromptSet, load_prompts
from ballast.prompts.overlap import without_near_duplicates
from ballast.tune.harden import HARMLESS, REFUSALS

HARMFUL = {"advbench": 450, "harmfulqa": 350, "dangerousqa": 150}
HARMLESS_PUBLIC = {"coconot_contrast_pref": 400, "alpaca_5000": 400}
SEED = 3


class TrainingSets(NamedTuple):
    """What `harden` takes under these names."""

    refusals: list[PromptSet]
    harmless: list[PromptSet]


def training_sets(measured: Sequence[PromptSet]) -> TrainingSets:
    """The built-in sets and public ones.

    Args:
        measured: The sets that the hardened model is measured on.
    """

    def public(sets: dict[str, int]) -> list[PromptSet]:
        return [without_near_duplicates(load_prompts(name, limit=n, seed=SEED), measured) for name, n in sets.items()]

    return TrainingSets(
        refusals=[load_prompts(REFUSALS), *public(HARMFUL)],
        harmless=[*(load_prompts(name) for name in HARMLESS), *public(HARMLESS_PUBLIC)],
    )


def builtin_sets() -> TrainingSets:
    """The built-in sets alone."""
    return TrainingSets([load_prompts(REFUSALS)], [load_prompts(name) for name in HARMLESS])
