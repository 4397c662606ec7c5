"""Sums of gradients on a model that is spread over processes: the batches are dealt out, the sums are those of one.

Every process gets its rows of the gradient of each batch, and adds them to its rows of the sum in the order of the
batches, as one process does; see `ballast.models.exchange`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ballast.errors import ModelError, UsageError
from ballast.locate.engine import Fold, batched, eligible_parameters, only_trainable, weighted_likelihood, zeros
from ballast.locate.inputs import Reader
from ballast.locate.registry import Method, Task
from ballast.locate.rows import WeightedRow
from ballast.models.exchange import exchanged, own_of, turns_of
from ballast.progress import track
from ballast.shards import mesh_of, own_part, summed

# They ask for sums of gradients, or look at each weight and its matrix; the others read inputs or answers.
WORKING = ("esi", "snip", "gradient", "gradient_times_weight", "magnitude", "sigma")


def require_sharded_method(task: Task, method: Method) -> None:
    """Make sure that what is asked for works on a sharded model.

    Raises:
        UsageError: The method or its setting does not, or an interrupted pass is to be continued.
    """
    if method.name not in WORKING or getattr(method, "estimator", "reference_answer") != "reference_answer":
        raise UsageError(
            f"The method {method.name} with these settings does not work on a sharded model; use one of "
            f"{', '.join(WORKING)}, and of esi the estimator reference_answer."
        )
    if task.checkpoint:
        raise UsageError("A pass over a sharded model cannot be continued after an interruption; give no checkpoint.")


class PassesOverProcesses:
    """Makes the passes that methods ask for, the batches being dealt out to the processes in turn."""

    def gradients(self, task: Task, rows: Sequence[WeightedRow], fold: Fold) -> dict[str, torch.Tensor]:
        """See `Task.gradients`; the sums are spread as the parameters are.

        For `absolute` each row is a batch of its own, so that its gradient is known.

        Raises:
            NumericalError: A loss is not finite; only in the process that runs the rows.
            ModelError: No gradient reached a parameter.
        """
        parameters = eligible_parameters(task.lm)
        sums = zeros(parameters)
        batches = batched(rows, task.batch_size if fold == "sum" else 1)

        def consume(name: str) -> None:
            gradient = parameters[name].grad
            assert gradient is not None
            for part in exchange.parts(gradient)[: len(turn)]:
                own_part(sums[name]).add_(part if fold == "sum" else part.abs())
            parameters[name].grad = None

        with only_trainable(task.lm.model, set(parameters)), exchanged(task.lm) as exchange:
            hooks = [
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: consume(name))
                for name, parameter in parameters.items()
            ]
            try:
                for turn in track(turns_of(task.lm, batches), "Gradients"):
                    weighted_likelihood(task.lm, own_of(task.lm, turn).batch).backward()
            finally:
                for hook in hooks:
                    hook.remove()
        _require_gradients(sums)
        return sums

    def inputs(self, task: Task, rows: Sequence[WeightedRow], reader: Reader) -> None:
        """Not made, see `require_sharded_method`."""
        raise NotImplementedError


def _require_gradients(sums: dict[str, torch.Tensor]) -> None:
    own = np.array([int(own_part(value).any()) for value in sums.values()])
    found = summed(own, mesh_of(next(iter(sums.values()))))
    missed = [name for name, processes in zip(sums, found, strict=True) if not processes]
    if missed:
        raise ModelError(f"No gradient reached {len(missed)} parameters ({missed[0]}); the model does not use them.")
