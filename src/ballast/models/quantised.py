"""Weights that are stored quantised: they are listed where others can be scored, and refused where none can.

What the libraries of quantisation do differs in form only: parameters that are no floating point numbers or have
eight bits (bitsandbytes, compressed-tensors, FP8), tensors of a class of their own (torchao), and matrices packed into
integer buffers (GPTQ, AWQ).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ballast.errors import ModelError
from ballast.models.roles import suggested_role

PLAIN_CLASSES = (torch.Tensor, nn.Parameter, DTensor)


def is_opaque(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a class of its own, whose numbers are not where PyTorch looks for them."""
    return type(tensor) not in PLAIN_CLASSES


def stored_as(tensor: torch.Tensor) -> str | None:
    """The form of a quantised tensor, such as `int8` or `Int8Tensor`; None for plain numbers of 16 bits or more."""
    if is_opaque(tensor):
        return type(tensor).__name__
    if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
        return None
    return str(tensor.dtype).removeprefix("torch.")


def packed_matrices(model: nn.Module, blocks: str) -> Iterator[tuple[str, str]]:
    """Buffers in the decoder blocks that hold projections, by name, and their form; masks are no integers.

    Args:
        model: Any model.
        blocks: The path of its list of decoder blocks.
    """
    for name, buffer in model.named_buffers():
        form = stored_as(buffer)
        _, *path, _ = name.removeprefix(f"{blocks}.").split(".")
        if name.startswith(f"{blocks}.") and buffer.ndim > 1 and form not in (None, "bool") and role_within(path):
            yield name, str(form)


def role_within(path: list[str]) -> str | None:
    """The role of a packed tensor's module: that of the last name in its path, or of the one before."""
    return next((role for names in (path, path[:-1]) if names and (role := suggested_role(names))), None)


def quantised_error(model: nn.Module, quantised: Mapping[str, str]) -> ModelError:
    """The error for a model whose weights are quantised.

    Args:
        model: Names its class.
        quantised: The form of each such tensor, by name; at least one.
    """
    forms = ", ".join(dict.fromkeys(quantised.values()))
    named = ", ".join(list(quantised)[:3])
    return ModelError(
        f"{type(model).__name__} has {len(quantised)} quantised weight tensors (such as {named}; stored as {forms}), "
        "which cannot be scored or tuned; give the unquantised checkpoint."
    )
