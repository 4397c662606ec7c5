"""One backward pass per batch; gradients are consumed parameter by parameter into fp32 sums.

Most gradient scores in this room are a weighted sum of response log-probabilities,

    L(theta) = sum_rows weight_row * sum_t log p(response_t | prompt, response_<t),

and differ only in its weights and in whether gradients are added with their sign or by absolute value. A method with
another loss brings its own rows and that loss.
The gradient of one parameter lives from the moment autograd finishes it until it is added to its accumulator, so the
memory beyond the model is one fp32 number per scored weight plus the largest single gradient.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import Parameter
from transformers import PreTrainedModel

from ballast.errors import ModelError, NumericalError, RunError
from ballast.locate.inputs import Reader, counted_inputs
from ballast.locate.row_gradients import added_row_gradients, differentiable_inputs, tells_rows_apart
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel
from ballast.models.likelihood import response_log_probabilities
from ballast.models.streaming import require_in_memory
from ballast.progress import track
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered
from ballast.runs import write_tensors
from ballast.shards import own_part, spread_as

Fold = Literal["sum", "absolute"]


class Row(Protocol):
    """A prompt with its response, and what the loss needs to know of them."""

    @property
    def rendered(self) -> Rendered:
        """Token ids and where the response begins."""
        ...

    @property
    def work(self) -> list[Any]:
        """All that the gradient of this row depends on besides the model, as JSON; a checkpoint is recognised by it."""
        ...


AnyRow = TypeVar("AnyRow", bound=Row)
Loss = Callable[[LanguageModel, Sequence[AnyRow]], torch.Tensor]


def eligible_parameters(lm: LanguageModel) -> dict[str, Parameter]:
    """The parameters that can be part of a region, by name; at least one.

    Raises:
        ModelError: The model is streamed, so there are none in memory; `scores_by_part` does without.
    """
    eligible = {part.name for part in lm.parts.eligible()}
    found = {name: parameter for name, parameter in lm.model.named_parameters() if name in eligible}
    require_in_memory(found.values())
    return found


@contextmanager
def only_trainable(model: PreTrainedModel, names: set[str]) -> Iterator[None]:
    """Ask autograd for the gradients of `names` alone inside the block.

    Raises:
        ModelError: The model is streamed.
    """
    require_in_memory(model.parameters())
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


def accumulate(
    lm: LanguageModel,
    rows: Sequence[WeightedRow],
    *,
    fold: Fold,
    batch_size: int,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    readers: Sequence[Reader] = (),
    absolute: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Sum the gradients of the weighted log-likelihood over all rows; see `accumulate_loss`.

    `readers` see what each projection reads on the way, and to `absolute` the absolute gradient of every row is added,
    see `added_row_gradients`. Neither is in the checkpoint: give these or a checkpoint.
    """
    with nullcontext() if absolute is None else added_row_gradients(lm, absolute):
        return accumulate_loss(
            lm,
            rows,
            partial(weighted_likelihood, readers=readers) if readers else weighted_likelihood,
            fold=fold,
            batch_size=batch_size,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
        )


def accumulate_loss(
    lm: LanguageModel,
    rows: Sequence[AnyRow],
    loss: Loss[AnyRow],
    *,
    fold: Fold,
    batch_size: int,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    rounded: bool = False,
) -> dict[str, torch.Tensor]:
    """Sum the gradients of a loss over all rows.

    Args:
        lm: The model; its weights do not change.
        rows: The prompts with their responses. They are batched by length; the order of equal lengths is kept.
        loss: Gives the loss of some rows, a scalar; that of a batch must be the sum over its rows.
        fold: `sum` adds signed gradients; `absolute` adds the absolute values of every row's gradient.
        batch_size: Rows per backward pass; one for `absolute` where rows cannot be told apart.
        checkpoint: File for the state of an interrupted pass; it is continued if it belongs to the same work.
        checkpoint_seconds: Least time between two writes of that file.
        rounded: Round each sum to its parameter's dtype after every batch, as PyTorch does when it adds gradients up.

    Returns:
        fp32 sums with the shape of each eligible parameter, by parameter name.

    Raises:
        NumericalError: A loss is not finite; the message names the rows.
        ModelError: No gradient reached a parameter.
        RunError: The checkpoint belongs to other work.
    """
    parameters = eligible_parameters(lm)
    size = batch_size if fold == "sum" or tells_rows_apart(lm) else 1
    batches = batched(rows, size)
    key = _work_key(lm, batches, fold, rounded)
    sums, done = _resume(checkpoint, key, parameters)
    saved_at = time.monotonic()
    with _added(lm, parameters, sums, fold) as reached:
        for number, batch in enumerate(track(batches[done:], "Gradients", done), start=done + 1):
            loss(lm, batch).backward()
            if rounded:
                for name, total in sums.items():
                    total.copy_(total.to(parameters[name].dtype))
            if checkpoint and number < len(batches) and time.monotonic() - saved_at >= checkpoint_seconds:
                _save(checkpoint, sums, key, number)
                saved_at = time.monotonic()
    missed = sorted(parameters.keys() - reached)
    if missed and done < len(batches):
        raise ModelError(f"No gradient reached {len(missed)} parameters ({missed[0]}); the model does not use them.")
    if checkpoint and done < len(batches):
        _save(checkpoint, sums, key, len(batches))
    return sums


@contextmanager
def _added(
    lm: LanguageModel, parameters: dict[str, Parameter], sums: dict[str, torch.Tensor], fold: Fold
) -> Iterator[set[str]]:
    """Add to `sums` what every backward pass inside the block finds; yields the names of the parameters reached."""
    if fold == "absolute" and tells_rows_apart(lm):
        with only_trainable(lm.model, set()), differentiable_inputs(lm), added_row_gradients(lm, sums) as reached:
            yield reached
        return
    reached = set()

    def consume(name: str) -> None:
        parameter = parameters[name]
        gradient = parameter.grad
        assert gradient is not None
        sums[name].add_(gradient.abs_() if fold == "absolute" else gradient)
        parameter.grad = None
        reached.add(name)

    with only_trainable(lm.model, set(parameters)):
        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: consume(name))
            for name, parameter in parameters.items()
        ]
        try:
            yield reached
        finally:
            for hook in hooks:
                hook.remove()


def weighted_likelihood(lm: LanguageModel, rows: Sequence[WeightedRow], readers: Sequence[Reader] = ()) -> torch.Tensor:
    """The weighted sum of response log-probabilities of one batch, a scalar; `readers` see the forward pass.

    Raises:
        NumericalError: It is not finite; the message names the rows.
    """
    batch = collate([row.rendered for row in rows], lm.pad_id).to(lm.device)
    with counted_inputs(lm, batch, readers) if readers else nullcontext():
        chosen = response_log_probabilities(lm.model, batch.input_ids, batch.attention_mask, batch.response_mask)
    per_row = batch.response_mask.sum(dim=1)  # (B,)
    weights = torch.tensor([row.weight for row in rows], device=lm.device).repeat_interleave(per_row)
    loss = (weights * chosen).sum()
    if not torch.isfinite(loss):
        named = ", ".join(row.id for row in rows[:4])
        raise NumericalError(f"The likelihood of {named} is not finite; open the model in bfloat16 or float32.")
    return loss


def batched(rows: Sequence[AnyRow], size: int) -> list[list[AnyRow]]:
    """Rows in batches of `size`, the longest first; the order of equal lengths is kept."""
    ordered = sorted(rows, key=lambda row: len(row.rendered.ids), reverse=True)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _work_key(lm: LanguageModel, batches: Sequence[Sequence[Row]], fold: Fold, rounded: bool) -> str:
    work = [lm.identity(), [[row.work for row in batch] for batch in batches], fold, rounded]
    return hashlib.sha256(json.dumps(work).encode()).hexdigest()


def zeros(parameters: dict[str, Parameter]) -> dict[str, torch.Tensor]:
    """fp32 zeros in the shape of each parameter, cut from one block per device.

    One block is handed back to the system as soon as the sums are gone; hundreds of blocks between those of the
    gradients are not, and cost a tenth of the backward pass in page faults.
    """
    sizes: Counter[torch.device] = Counter()
    held = {name: own_part(value) for name, value in parameters.items()}
    for part in held.values():
        sizes[part.device] += part.numel()
    rest = {device: torch.zeros(size, dtype=torch.float32, device=device) for device, size in sizes.items()}
    sums = {}
    for name, part in held.items():
        taken, rest[part.device] = rest[part.device].split([part.numel(), rest[part.device].numel() - part.numel()])
        sums[name] = spread_as(parameters[name], taken.view(part.shape))
    return sums


def _resume(checkpoint: Path | None, key: str, parameters: dict[str, Parameter]) -> tuple[dict[str, torch.Tensor], int]:
    sums = zeros(parameters)
    if checkpoint is None or not checkpoint.exists():
        return sums, 0
    try:
        with safe_open(checkpoint, framework="pt") as stored:
            metadata = stored.metadata()
            if metadata["key"] != key:
                raise RunError(
                    f"{checkpoint} belongs to a run with other settings; use another --out folder or delete it."
                )
            for name, total in sums.items():
                total.copy_(stored.get_tensor(name))
            return sums, int(metadata["batches"])
    except (SafetensorError, OSError) as error:
        raise RunError(f"{checkpoint} is damaged ({error}); delete it and run again.") from error


def _save(checkpoint: Path, sums: dict[str, torch.Tensor], key: str, batches: int) -> None:
    tensors = {name: value.cpu() for name, value in sums.items()}
    write_tensors(checkpoint, tensors, {"key": key, "batches": str(batches)})
