"""Regions of disjoint halves of a prompt set: how alike regions of one set are, and how that grows with prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ballast.errors import UsageError
from ballast.locate.registry import Method
from ballast.locate.scoring import locate
from ballast.models import LanguageModel
from ballast.progress import track
from ballast.prompts import PromptSet, as_prompt_set
from ballast.regions import Region
from ballast.regions.ceiling import Ceiling, Halves, ceiling_of
from ballast.regions.selection import Scope
from ballast.regions.unit_selection import UnitScope

Locate = Callable[[PromptSet], Region]
SPLITS = 5


def split_prompts(prompts: PromptSet, size: int, splits: int, seed: int) -> list[tuple[PromptSet, PromptSet]]:
    """Random pairs of disjoint subsets, in the order of the set.

    Sets of one size are divided alike, so that two methods on one set get the same halves.

    Args:
        prompts: The whole set.
        size: Prompts on each side.
        splits: How many pairs.
        seed: Of the draws.

    Raises:
        UsageError: The set is smaller than two sides, or a number is below 1.
    """
    if splits < 1 or size < 1 or 2 * size > len(prompts):
        raise UsageError(
            f"{splits} splits of {prompts.name} with {size} prompts on each side need {max(2, 2 * size)} prompts and "
            f"at least one split, and it has {len(prompts)} prompts; give more prompts or ask for fewer."
        )
    pairs = []
    for split in range(splits):
        order = random.Random(f"{seed} {split}").sample(range(len(prompts)), 2 * size)  # noqa: S311  not a secret
        first, second = (
            replace(prompts, prompts=tuple(prompts[index] for index in sorted(side)))
            for side in (order[:size], order[size:])
        )
        pairs.append((first, second))
    return pairs


def resample_halves(prompts: PromptSet, size: int, resamples: int, seed: int) -> list[tuple[PromptSet, PromptSet]]:
    """Splits whose sides are drawn again with replacement, each within itself, so that they share no prompt.

    Args:
        prompts: As for `split_prompts`.
        size: As for `split_prompts`.
        resamples: How many pairs, or none.
        seed: Of the draws.

    Raises:
        UsageError: As for `split_prompts`.
    """
    drawn = []
    for number, pair in enumerate(split_prompts(prompts, size, resamples, seed) if resamples else ()):
        generator = random.Random(f"{seed} again {number}")  # noqa: S311  not a secret
        first, second = (
            replace(
                side,
                prompts=tuple(
                    prompt.model_copy(update={"id": f"{prompt.id}#{place}"})
                    for place, prompt in enumerate(generator.choices(side.prompts, k=size))
                ),
            )
            for side in pair
        )
        drawn.append((first, second))
    return drawn


def located_halves(pairs: Sequence[tuple[PromptSet, PromptSet]], located: Locate) -> list[Halves]:
    """The two regions of every pair."""
    return [Halves(located(first), located(second)) for first, second in track(pairs, "locate on halves")]


def ceiling(
    lm: LanguageModel,
    prompts: PromptSet | str,
    method: str | Method = "esi",
    fraction: Fraction | float | str | None = None,
    *,
    splits: int = SPLITS,
    seed: int = 0,
    scope: Scope | UnitScope | None = None,
    layers: Collection[int] | None = None,
    batch_size: int = 8,
    **method_settings: Any,
) -> Ceiling:
    """How alike the regions of two random halves of one prompt set are; no overlap across sets can be told from more.

    Args:
        lm: The model; its weights are unchanged.
        prompts: The set; half of it goes on each side.
        method: As for `locate`.
        fraction: As for `Scores.select`.
        splits: Random halvings; each is two calls of `locate`.
        seed: Of the halvings and of the method.
        scope: As for `Scores.select`.
        layers: As for `Scores.select`.
        batch_size: As for `locate`.
        **method_settings: As for `locate`.

    Raises:
        UsageError: The set has fewer than two prompts.
        BallastError: As `locate` and `select` raise it.
    """
    whole = as_prompt_set(prompts)
    sizes = (len(whole) // 2,)
    more: dict[str, Any] = {"scope": scope, "layers": layers, "batch_size": batch_size, **method_settings}
    return convergence(lm, whole, method, fraction, sizes=sizes, splits=splits, seed=seed, **more)[0]


def convergence(
    lm: LanguageModel,
    prompts: PromptSet | str,
    method: str | Method = "esi",
    fraction: Fraction | float | str | None = None,
    *,
    sizes: Sequence[int],
    splits: int = SPLITS,
    seed: int = 0,
    scope: Scope | UnitScope | None = None,
    layers: Collection[int] | None = None,
    batch_size: int = 8,
    **method_settings: Any,
) -> list[Ceiling]:
    """How alike the regions of disjoint samples of 8, 16, 32 ... prompts of one set are.

    Args:
        lm: As for `ceiling`.
        prompts: As for `ceiling`.
        method: As for `ceiling`.
        fraction: As for `ceiling`.
        sizes: Prompts on each side; twice the largest must be there.
        splits: Pairs of samples per size.
        seed: As for `ceiling`.
        scope: As for `ceiling`.
        layers: As for `ceiling`.
        batch_size: As for `ceiling`.
        **method_settings: As for `ceiling`.

    Raises:
        UsageError: The set is smaller than twice a size, or a size is below 1.
        BallastError: As `locate` and `select` raise it.
    """
    whole = as_prompt_set(prompts)
    pairs = {size: split_prompts(whole, size, splits, seed) for size in sizes}  # refuses before anything is located

    def located(part: PromptSet) -> Region:
        scores = locate(lm, part, method, seed=seed, batch_size=batch_size, **method_settings)
        return scores.select(fraction, scope=scope, layers=layers)

    return [ceiling_of(located_halves(pairs[size], located), size) for size in sizes]
