"""Score a model with one method, or with several that share their passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ballast.errors import UsageError
from ballast.locate.registry import Found, Method, Task, UnitsFound, get_method
from ballast.locate.scores import Scores, WeightScores
from ballast.locate.sharded import PassesOverProcesses, require_sharded_method
from ballast.locate.together import found_together
from ballast.locate.unit_scores import UnitScores
from ballast.models import LanguageModel
from ballast.models.sharding import is_sharded
from ballast.prompts import PromptSet, as_prompt_set


def locate(
    lm: LanguageModel,
    prompts: PromptSet | str,
    method: str | Method = "esi",
    *,
    seed: int = 0,
    batch_size: int = 8,
    checkpoint: Path | str | None = None,
    checkpoint_seconds: float = 60.0,
    **method_settings: Any,
) -> Scores:
    """Score every eligible weight of a model, or its neurons, heads or layers.

    Args:
        lm: The model; its weights are unchanged afterwards.
        prompts: Harmful prompts; those with a response use it as the reference where the method needs one.
        method: A method's name (see `METHODS`) or its settings object.
        seed: Of everything random; the same seed gives the same scores on the same machine.
        batch_size: Rows per backward pass; methods that need one row at a time ignore it.
        checkpoint: File for the state of an interrupted pass, so that the same call continues there.
        checkpoint_seconds: Least time between two writes of that file.
        **method_settings: Settings of a method given by name, such as `samples=8`.

    Raises:
        UsageError: The method or a setting is unknown, or does not work on a sharded model.
        PromptError: A prompt does not fit the model.
        NumericalError: A likelihood is not finite.
    """
    chosen = get_method(method, **method_settings)
    prompt_set = as_prompt_set(prompts)
    task = Task(lm, prompt_set, seed, batch_size, Path(checkpoint) if checkpoint else None, checkpoint_seconds)
    if is_sharded(lm):
        require_sharded_method(task, chosen)
        task = dataclasses.replace(task, passes=PassesOverProcesses())
    return _scores(task, chosen, chosen.score(task))


def locate_all(
    lm: LanguageModel,
    prompts: PromptSet | str,
    methods: Sequence[str | Method],
    *,
    seed: int = 0,
    batch_size: int = 8,
) -> list[Scores]:
    """Score with several methods; passes over the same rows are made once.

    Methods share a backward pass if they want the gradients of the same likelihoods (`esi`, `gradient`,
    `gradient_times_weight`), and one that reads inputs over the same rows (`wanda`) reads them in its forward part. The
    scores are those of `locate`. Give every prompt a response: general refusals differ between methods.

    Args:
        lm: As for `locate`.
        prompts: As for `locate`.
        methods: Names or settings objects.
        seed: As for `locate`.
        batch_size: As for `locate`.

    Returns:
        Scores in the order of `methods`.

    Raises:
        UsageError: A method is unknown, there is none, or the model is sharded.
        BallastError: As `locate` raises it; the first error of any method.
    """
    chosen = [get_method(method) for method in methods]
    if not chosen:
        raise UsageError("There is no method to locate with; name at least one.")
    if is_sharded(lm):  # methods run in threads, and processes must communicate in one order
        raise UsageError("A sharded model is scored with one method at a time; call locate for each.")
    task = Task(lm, as_prompt_set(prompts), seed, batch_size)
    found = found_together(task, chosen)
    return [_scores(task, method, one) for method, one in zip(chosen, found, strict=True)]


def _scores(task: Task, method: Method, found: Found | UnitsFound) -> Scores:
    about: dict[str, Any] = {
        "lm": task.lm,
        "prompts": task.prompts,
        "method": method.name,
        "fidelity": method.fidelity,
        "settings": {**dataclasses.asdict(method), "batch_size": task.batch_size, **found.notes},
        "seed": task.seed,
    }
    if isinstance(found, Found):
        return WeightScores(values=found.scores, **about)
    return UnitScores(
        granularity=method.granularity,
        groups=tuple(found.groups),
        values=tuple(found.scores),
        chosen=None if found.chosen is None else tuple(found.chosen),
        **about,
    )
