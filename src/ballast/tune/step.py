"""One optimizer step of hardening."""

from __future__ import annotations

from typing import Protocol

import torch

from ballast.errors import NumericalError
from ballast.models import LanguageModel
from ballast.models.exchange import added_up, own_of, turns_of
from ballast.tune.curriculum import Curriculum
from ballast.tune.objective import lesson_losses
from ballast.tune.settings import HardenSettings


class Stepper(Protocol):
    """An optimizer that gathers gradients as they come; `SparseAdamW`, or a stand-in in a comparison."""

    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient gathered since the last step."""
        ...

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from the next step on."""
        ...

    def step(self, scale: float = 1.0) -> None:
        """Step on the gathered gradient times `scale`, and clear it."""
        ...


def train_step(
    lm: LanguageModel,
    optimizer: Stepper,
    lessons: Curriculum,
    settings: HardenSettings,
    step: int,
) -> dict[str, float]:
    """One optimizer step over its rows, in micro-batches; the loss is a mean over all response tokens of the step.

    Of a model that is spread over processes each of them runs some of the micro-batches.
    """
    rows = lessons.batch(step, settings.refusals_per_step, settings.answers_per_step, settings.endings_per_step)
    rows.sort(key=lambda row: len(row.rendered.ids))  # little padding in each micro-batch
    refuse_tokens = sum(row.tokens for row in rows if row.teacher is None)
    help_tokens = max(1, sum(row.tokens for row in rows if row.teacher is not None))
    refuse = help_ = 0.0
    batches = [rows[start : start + settings.micro_batch] for start in range(0, len(rows), settings.micro_batch)]
    for turn in turns_of(lm, batches):
        batch, counts = own_of(lm, turn)
        losses = lesson_losses(lm, batch)
        loss = losses.refuse / refuse_tokens + settings.help_weight * losses.help / help_tokens
        if not torch.isfinite(loss):
            named = ", ".join(row.id for row in batch[:4])
            raise NumericalError(f"The loss of step {step + 1} is not finite ({named}); use a lower learning rate.")
        (loss if counts else 0 * loss).backward()
        refuse += counts * float(losses.refuse.detach()) / refuse_tokens
        help_ += counts * float(losses.help.detach()) / help_tokens
    refuse, help_ = added_up(lm, refuse, help_)
    norm = optimizer.gradient_norm()
    rate = settings.rate(step)
    optimizer.set_lr(rate)
    optimizer.step(min(1.0, settings.clip / norm) if norm > 0 else 1.0)
    return {
        "loss": refuse + settings.help_weight * help_,
        "refuse": refuse,
        "help": help_,
        "gradient_norm": norm,
        "learning_rate": rate,
    }
