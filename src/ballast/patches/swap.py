"""Write a patch's entries into a model, or take them back, after making sure of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from ballast.errors import PatchError
from ballast.models.fingerprint import tensor_fingerprint
from ballast.patches.entries import Entries
from ballast.patches.header import Header, TensorRecord

State = Literal["base", "patched"]


def state_of(model: torch.nn.Module, header: Header) -> State:
    """Whether the patched tensors of a model are those of the base or those after applying.

    Raises:
        PatchError: They are neither.
    """
    states: set[State] = {"base", "patched"}
    for name, parameter in patched_parameters(model, header).items():
        found = tensor_fingerprint(parameter)
        states -= {state for state in states if getattr(header.tensors[name], state) != found}
        if not states:
            raise PatchError(
                f"{name} of this model is not that of {header.base.source}, for which the patch was made; "
                "give the model it was made for, without other changes."
            )
    return "base" if "base" in states else "patched"


def swap(model: torch.nn.Module, header: Header, entries: Mapping[str, Entries], wanted: State) -> None:
    """Bring every patched tensor into the wanted state, bit for bit; nothing is written until all was checked.

    Raises:
        PatchError: The model is not in the other state, or the result would not be what the header promises.
    """
    if state_of(model, header) == wanted:
        raise PatchError(
            "The patch is already applied to this model; revert it first or leave it."
            if wanted == "patched"
            else "The patch is not applied to this model; there is nothing to revert."
        )
    parameters = patched_parameters(model, header)
    for name, parameter in parameters.items():
        check_outcome(name, parameter, entries[name], header.tensors[name], wanted)
    for name, parameter in parameters.items():
        _write(parameter.detach(), entries[name], wanted)


def check_outcome(name: str, tensor: torch.Tensor, entries: Entries, record: TensorRecord, wanted: State) -> None:
    """Make sure that the entries take a tensor to the state that the header promises; nothing is written.

    Raises:
        PatchError: They do not.
    """
    if tensor_fingerprint(written(tensor, entries, wanted)) != getattr(record, wanted):
        raise PatchError(f"The patch does not make {name} what it promises, so it is damaged; make it again.")


def written(tensor: torch.Tensor, entries: Entries, wanted: State) -> torch.Tensor:
    """A copy of a tensor with the entries in the wanted state."""
    copy = tensor.detach().clone()
    _write(copy, entries, wanted)
    return copy


def _write(tensor: torch.Tensor, entries: Entries, wanted: State) -> None:
    source = entries.values if wanted == "patched" else entries.previous
    tensor.put_(entries.indices.to(tensor.device, torch.int64), source.to(tensor.device))  # flat, whatever the strides


def patched_parameters(model: torch.nn.Module, header: Header) -> dict[str, torch.nn.Parameter]:
    """The parameters that a patch touches, each of the recorded shape and dtype.

    Raises:
        PatchError: The model lacks one, or has another shape or dtype.
    """
    named = dict(model.named_parameters())  # a tied weight once
    for name, record in header.tensors.items():
        found = named.get(name)
        if found is None:
            raise PatchError(f"This model has no tensor {name}; give the model that the patch was made for.")
        if tuple(found.shape) != record.shape or found.dtype != record.torch_dtype:
            dtype = str(found.dtype).removeprefix("torch.")
            raise PatchError(
                f"{name} of this model is {dtype} {tuple(found.shape)} but the patch is for {record.dtype} "
                f"{record.shape}; open the model that it was made for, in that dtype."
            )
    return {name: named[name] for name in header.tensors}
