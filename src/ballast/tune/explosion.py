"""When the loss of the refusals is so high that training broke the model, rather than taught it.

The distance from the original model is no sign: one that refuses everything is far from it and not broken.
"""

from __future__ import annotations

import math

import torch

from ballast.errors import NumericalError
from ballast.models import LanguageModel
from ballast.tune.curriculum import Curriculum
from ballast.tune.objective import lesson_losses
from ballast.tune.settings import HardenSettings

RISE = 1.5  # of the refusals' loss, for a model that at first is worse than a uniform guess


def highest_loss(lm: LanguageModel, first: float) -> float:
    """The loss in nats per token above which a model is broken: a uniform guess, or well above the first loss."""
    return max(math.log(lm.model.config.get_text_config().vocab_size), RISE * first)


def require_calm(loss: float, highest: float, step: int) -> None:
    """Refuse a loss above the highest, or none at all.

    Raises:
        NumericalError: It is.
    """
    if not loss <= highest:
        raise NumericalError(f"The loss exploded at step {step}, {loss:.1f} nats per token; use a lower learning rate.")


@torch.no_grad()
def require_sound(lm: LanguageModel, lessons: Curriculum, settings: HardenSettings, step: int, highest: float) -> None:
    """Make sure that the weights after a step are worth keeping, by the first rows that it learnt.

    Args:
        lm: The model after the step.
        lessons: What it learns.
        settings: How many rows there are in a step.
        step: Counted from 1.
        highest: From `highest_loss`.

    Raises:
        NumericalError: The loss of these rows is not finite or exploded.
    """
    rows = lessons.batch(step - 1, min(settings.refusals_per_step, settings.micro_batch), 0)
    require_calm(float(lesson_losses(lm, rows).refuse) / sum(row.tokens for row in rows), highest, step)
