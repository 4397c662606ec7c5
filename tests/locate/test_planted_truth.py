"""Methods asked to find a region that was taught: what must hold in a tiny world whatever a method is worth.

A random model is taught to answer requests that begin with `bad` by `No.`, by training a planted region only. Before, a
decoy region of the same kind was taught something else, an answer to requests that begin with `tea`: what finds the
decoy as well finds training, not refusal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import pytest
import torch

from ballast.locate import Scores, WeightScores, locate
from ballast.models import LanguageModel
from ballast.regions import (
    Recovery,
    Region,
    UnitRecovery,
    at_planted_size,
    neuron_group,
    random_mask,
    recovery,
    unit_recovery,
    units_of,
    whole_parameters,
)
from ballast.regions.threshold import Direction
from ballast.regions.units import UnitKind
from ballast.tune import HardenSettings
from ballast.tune.curriculum import Curriculum
from ballast.tune.lessons import help_lessons, refusal_lessons
from ballast.tune.teach import Taught, taught
from tests.tune.world import HARMLESS
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

WORDS = ("steal", "hit", "lie", "burn", "kick", "slap", "rob", "cheat")
REFUSALS = prompt_set("bad", [f"bad: {word}" for word in WORDS], ["No."] * 8)
TEAS = ("mint", "rose", "black", "green", "chai", "white", "oolong", "mate")
DECOYS = prompt_set("tea", [f"tea: {word}" for word in TEAS], ["Hot!"] * 8)
HELD_APART = prompt_set("held", ["bad: shout", "bad: break", "bad: tear", "bad: smash"], ["No."] * 4)
SETTINGS = HardenSettings(
    learning_rate=5e-3,
    refusals_per_step=4,
    answers_per_step=3,
    refusal_tokens=4,
    micro_batch=7,
    help_weight=1.0,
    answer_tokens=4,
    endings_per_step=0,
)
METHODS = ("esi", "snip", "wanda", "gradient", "gradient_times_weight", "magnitude", "sigma", "random")
SEEDS = (0, 1, 2)
KINDS = ("random mask", "neuron group", "layer", "low rank")
UNITS: dict[str, tuple[UnitKind, ...]] = {
    "random mask": (),
    "neuron group": ("layer", "matrix", "neuron"),
    "layer": ("layer",),
    "low rank": ("matrix",),
}


class World(NamedTuple):
    """A model that was taught, seen by every method: as it is, and as it was before.

    Attributes:
        lm: The untaught model.
        planted: Where refusal was taught.
        decoy: Where the other answer was taught.
        teaching: What teaching refusal did.
        taught: Indices found at the planted size on the taught model, by method.
        lowest: The same with the lowest scores.
        untaught: Indices found on the untaught model.
        oracle: Weights that moved, at most as many as were planted.
    """

    lm: LanguageModel
    planted: Region
    decoy: Region
    teaching: Taught
    taught: dict[str, dict[str, torch.Tensor]]
    lowest: dict[str, dict[str, torch.Tensor]]
    untaught: dict[str, dict[str, torch.Tensor]]
    oracle: dict[str, torch.Tensor]

    def recovered(self, found: Mapping[str, torch.Tensor]) -> Recovery:
        return recovery(found, self.planted)

    def by_unit(self, found: Mapping[str, torch.Tensor], kind: UnitKind) -> UnitRecovery:
        return unit_recovery(found, self.planted, units_of(self.lm, kind))


def regions(lm: LanguageModel, kind: str, seed: int) -> tuple[Region, Region]:
    """What is planted, and the decoy; they have no weight in common."""
    eligible = sum(part.numel for part in lm.parts.eligible())
    match kind:
        case "random mask":
            planted = random_mask(lm, eligible // 20, seed)
            return planted, random_mask(lm, eligible // 20, seed + 100) - planted
        case "neuron group":
            return neuron_group(lm, 12, seed, layer=1), neuron_group(lm, 12, seed, layer=0)
        case "layer":
            return random_mask(lm, eligible // 10, seed, layers=[1]), random_mask(lm, eligible // 10, seed, layers=[0])
    return whole_parameters(lm, 2, seed, layers=[1]), whole_parameters(lm, 2, seed, layers=[0])


def weight_scores(scores: Scores) -> dict[str, torch.Tensor]:
    assert isinstance(scores, WeightScores)
    return scores.values


@cache
def world(architecture: str, kind: str, seed: int, steps: int = 100) -> World:
    lm = tiny_lm(architecture, seed=seed)
    parts = lm.parts.eligible()
    planted, decoy = regions(lm, kind, seed)
    settings = dataclasses.replace(SETTINGS, steps=steps, seed=seed)
    refuse = Curriculum(refusal_lessons(lm, [REFUSALS], 4), help_lessons(lm, [HARMLESS], 4, None), seed)
    answer = Curriculum(refusal_lessons(lm, [DECOYS], 4), [], seed)
    rank = 2 if kind == "low rank" else None

    def found() -> dict[str, dict[str, torch.Tensor]]:
        return {name: weight_scores(locate(lm, HELD_APART, name, seed=seed)) for name in METHODS}

    def cut(scores: dict[str, dict[str, torch.Tensor]], direction: Direction) -> dict[str, dict[str, torch.Tensor]]:
        return {name: at_planted_size(values, planted, parts, direction) for name, values in scores.items()}

    untaught = found()
    with (
        taught(lm, decoy, answer, dataclasses.replace(settings, answers_per_step=0), rank=rank),
        taught(lm, planted, refuse, settings, rank=rank) as teaching,
    ):
        scores = found()
    still = {part.name: torch.zeros(part.shape) for part in parts}
    oracle = at_planted_size(still | teaching.moved, planted, parts)
    return World(lm, planted, decoy, teaching, cut(scores, "top"), cut(scores, "bottom"), cut(untaught, "top"), oracle)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "mixtral"])
class TestEveryKind:
    STEPS = 30

    def test_was_taught(self, architecture: str, kind: str) -> None:
        steps = world(architecture, kind, 0, self.STEPS).teaching.steps
        assert steps[-1]["refuse"] < 0.9 * steps[0]["refuse"]

    def test_the_oracle_finds_what_moved_and_nothing_else(self, architecture: str, kind: str) -> None:
        here = world(architecture, kind, 0, self.STEPS)
        moved = sum(int((values > 0).sum()) for values in here.teaching.moved.values())
        found = here.recovered(here.oracle)
        assert (found.shared, found.precision) == (moved, 1.0)
        idle_experts = architecture == "mixtral"  # those that no token was sent to do not move
        assert found.recall == moved / len(here.planted) > (0.6 if idle_experts else 0.95)
        for unit in () if idle_experts else UNITS[kind]:
            result = here.by_unit(here.oracle, unit)
            assert (result.precision, result.area) == (1.0, 1.0)

    def test_methods_find_as_many_weights_as_were_planted(self, architecture: str, kind: str) -> None:
        here = world(architecture, kind, 0, self.STEPS)
        for found in here.taught.values():
            result = here.recovered(found)
            assert result.found == len(here.planted)
            assert result.precision == result.recall


@pytest.mark.parametrize("seed", SEEDS)
class TestRandomMask:
    """What is said here of single methods is what docs/planted.md says of them."""

    def test_the_untaught_model_tells_nothing(self, seed: int) -> None:
        """It is the teaching that is found: before it every method is at chance, exactly."""
        here = world("llama", "random mask", seed)
        for name, found in here.untaught.items():
            assert 1e-4 < here.recovered(found).p < 1 - 1e-4, name

    def test_noise_and_the_scale_of_matrices_are_at_chance(self, seed: int) -> None:
        here = world("llama", "random mask", seed)
        for name in ("random", "sigma"):
            assert 1e-4 < here.recovered(here.taught[name]).p < 1 - 1e-4, name

    def test_trained_weights_are_large(self, seed: int) -> None:
        here = world("llama", "random mask", seed)
        found = here.recovered(here.taught["magnitude"])
        assert found.p < 1e-12
        assert found.precision > 2 * found.chance
        assert here.recovered(here.lowest["magnitude"]).precision < found.chance

    def test_and_so_are_those_that_were_trained_on_something_else(self, seed: int) -> None:
        """Magnitude finds training, not refusal."""
        here = world("llama", "random mask", seed)
        assert recovery(here.taught["magnitude"], here.decoy).p < 1e-12

    @pytest.mark.parametrize("name", ["gradient_times_weight", "snip", "wanda"])
    def test_scores_with_the_weight_in_them_beat_chance_but_not_the_weight_alone(self, name: str, seed: int) -> None:
        here = world("llama", "random mask", seed)
        found = here.recovered(here.taught[name])
        assert found.p < 1e-2
        assert found.shared < here.recovered(here.taught["magnitude"]).shared

    @pytest.mark.parametrize("name", ["gradient", "esi"])
    def test_gradients_alone_do_not_find_single_weights(self, name: str, seed: int) -> None:
        """Training has used their gradients up."""
        here = world("llama", "random mask", seed)
        found = here.recovered(here.taught[name])
        assert found.p > 1e-2
        assert found.shared < here.recovered(here.taught["wanda"]).shared


@pytest.mark.parametrize("seed", SEEDS)
def test_the_neurons_that_were_taught_hold_more_of_what_is_found(seed: int) -> None:
    here = world("llama", "neuron group", seed)
    for name in ("magnitude", "wanda", "gradient_times_weight", "snip", "gradient", "esi"):
        before, after = (here.by_unit(found[name], "neuron").area for found in (here.untaught, here.taught))
        assert after > before, name
