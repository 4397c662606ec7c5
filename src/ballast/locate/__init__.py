"""Find the weights that matter for safety: one engine, one file per identification method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ballast.locate import (  # noqa: F401  importing a method registers it
    activation_contrast,
    controls,
    delta,
    differentiable_judge,
    esi,
    neurons,
    nlsr,
    refusal_direction,
    safe_lora,
    safety_layers,
    sahara,
    ships,
    snip,
    wanda,
)
from ballast.locate.registry import METHODS, Found, Method, Task, UnitsFound, get_method, register
from ballast.locate.scores import Scores, WeightScores
from ballast.locate.unit_scores import UnitScores
from ballast.models import LanguageModel
from ballast.prompts import PromptSet, as_prompt_set

__all__ = [
    "METHODS",
    "Found",
    "Method",
    "Scores",
    "Task",
    "UnitScores",
    "UnitsFound",
    "WeightScores",
    "get_method",
    "locate",
    "register",
]


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
        UsageError: The method or a setting is unknown.
        PromptError: A prompt does not fit the model.
        NumericalError: A likelihood is not finite.
    """
    chosen = get_method(method, **method_settings)
    prompt_set = as_prompt_set(prompts)
    task = Task(lm, prompt_set, seed, batch_size, Path(checkpoint) if checkpoint else None, checkpoint_seconds)
    found = chosen.score(task)
    about: dict[str, Any] = {
        "lm": lm,
        "prompts": prompt_set,
        "method": chosen.name,
        "fidelity": chosen.fidelity,
        "settings": {**dataclasses.asdict(chosen), "batch_size": batch_size, **found.notes},
        "seed": seed,
    }
    if isinstance(found, Found):
        return WeightScores(values=found.scores, **about)
    return UnitScores(
        granularity=chosen.granularity,
        groups=tuple(found.groups),
        values=tuple(found.scores),
        chosen=None if found.chosen is None else tuple(found.chosen),
        **about,
    )
