"""What can be located on a model that is spread over processes."""

from __future__ import annotations

from collections.abc import Sequence

from torch.distributed.fsdp import FSDPModule

from ballast.errors import UsageError
from ballast.locate.registry import Method, Task

# They ask for signed sums of gradients, or look at each weight and its matrix; the others read inputs or answers.
WORKING = ("esi", "gradient", "gradient_times_weight", "magnitude", "sigma")


def check_sharded(task: Task, methods: Sequence[Method]) -> None:
    """If the model is sharded, make sure that what is asked for works on it.

    Raises:
        UsageError: A method or its setting does not, there are several, or an interrupted pass is to be continued.
    """
    if not isinstance(task.lm.model, FSDPModule):
        return
    for method in methods:
        if method.name not in WORKING or getattr(method, "estimator", "reference_answer") != "reference_answer":
            raise UsageError(
                f"The method {method.name} with these settings does not work on a sharded model; use one of "
                f"{', '.join(WORKING)}, and of esi the estimator reference_answer."
            )
    if len(methods) > 1:  # they run in threads, and the processes would not communicate in the same order
        raise UsageError("A sharded model is scored with one method at a time; call locate for each.")
    if task.checkpoint:
        raise UsageError("A pass over a sharded model cannot be continued after an interruption; give no checkpoint.")
