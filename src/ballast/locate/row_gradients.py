"""The absolute gradient of every row of a batch, from one backward pass.

With X_b what a matrix reads at the tokens of row b, (T, in), and D_b the gradient of the loss by what it writes there,
(T, out), the gradient of this row alone is D_b^T X_b. So a batch needs one forward pass and one backward pass through
the activations; only the last product is made row by row, and its absolute values are added while the cache has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ballast.errors import ModelError
from ballast.models import LanguageModel
from ballast.models.parts import Part


def tells_rows_apart(lm: LanguageModel) -> bool:
    """Whether every scored matrix is a module that reads all tokens; experts read only what a router gives them."""
    return all(
        "experts." not in part.role
        and type(lm.model.get_submodule(part.name.rpartition(".")[0])) in (nn.Linear, Conv1D)
        for part in lm.parts.eligible()
    )


@contextmanager
def added_row_gradients(lm: LanguageModel, sums: Mapping[str, torch.Tensor]) -> Iterator[set[str]]:
    """Add |gradient| of every row to `sums`, for each forward and backward pass over a batch inside the block.

    Args:
        lm: A model whose rows can be told apart, see `tells_rows_apart`.
        sums: fp32, in the shape of each scored parameter, by name.

    Yields:
        Names of the parameters that were reached so far.

    Raises:
        ModelError: A matrix is used twice in one pass, so that the gradient of a row has several parts.
    """
    reached: set[str] = set()
    waiting: set[str] = set()  # whose gradient is still to come

    def seen(part: Part) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...], written: torch.Tensor) -> None:
            if part.name in waiting or arguments[0].dim() != 3:
                raise ModelError(f"{part.name} is not used once for every token, so rows cannot be told apart.")
            waiting.add(part.name)
            read = arguments[0].detach()
            written.register_hook(lambda gradient: add(part, read, gradient))

        return hook

    def add(part: Part, read: torch.Tensor, gradient: torch.Tensor) -> None:
        first, second = (gradient, read) if part.orientation == "out_in" else (read, gradient)
        for one, other in zip(first, second, strict=True):
            sums[part.name].add_((one.T @ other).abs_())
        waiting.discard(part.name)
        reached.add(part.name)

    hooks = [
        lm.model.get_submodule(part.name.rpartition(".")[0]).register_forward_hook(seen(part))
        for part in lm.parts.eligible()
    ]
    try:
        yield reached
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def differentiable_inputs(lm: LanguageModel) -> Iterator[None]:
    """Let gradients flow back to the embeddings, where no parameter asks for them."""

    def require(_: nn.Module, __: Any, embedded: torch.Tensor) -> None:
        embedded.requires_grad_(True)

    hook = lm.model.get_input_embeddings().register_forward_hook(require)
    try:
        yield
    finally:
        hook.remove()
