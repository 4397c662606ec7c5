"""Find the weights that matter for safety: one engine, one file per identification method."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ballast.locate import controls, esi, snip  # noqa: F401  importing a method registers it
from ballast.locate.registry import METHODS, Found, Method, Task, get_method, register
from ballast.locate.scores import Scores
from ballast.models import LanguageModel
from ballast.prompts import PromptSet

__all__ = ["METHODS", "Found", "Method", "Scores", "Task", "get_method", "locate", "register"]


def locate(
    lm: LanguageModel,
    prompts: PromptSet,
    method: str | Method = "esi",
    *,
    seed: int = 0,
    batch_size: int = 8,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> Scores:
    """Score every eligible weight of a model.

    Args:
        lm: The model; its weights are unchanged afterwards.
        prompts: Harmful prompts; those with a response use it as the reference where the method needs one.
        method: A method's name (see `METHODS`) or its settings object, such as `ExpectedSafetyImpact(samples=8)`.
        seed: Of everything random; the same seed gives the same scores on the same machine.
        batch_size: Rows per backward pass; methods that need one row at a time ignore it.
        checkpoint: File for the state of an interrupted pass, so that the same call continues there.
        checkpoint_seconds: Least time between two writes of that file.

    Raises:
        UsageError: The method is unknown.
        PromptError: A prompt does not fit the model.
        NumericalError: A likelihood is not finite.
    """
    chosen = get_method(method)
    task = Task(lm, prompts, seed, batch_size, checkpoint, checkpoint_seconds)
    found = chosen.score(task)
    settings = {**dataclasses.asdict(chosen), "batch_size": batch_size, **found.notes}
    return Scores(lm, prompts, found.scores, chosen.name, chosen.fidelity, settings, seed)
