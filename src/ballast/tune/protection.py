"""Weights that stay as they are while an optimizer trains the others: written back after every one of its steps.

Zero gradients would not do: momentum and weight decay move weights whose gradient is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ballast.errors import ProtectionError
from ballast.shards import is_own, own_indices, own_part

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Protection:
    """The protected weights and their values.

    Attributes:
        restored: How often values were written back.
    """

    def __init__(self, parameters: Mapping[str, Parameter], indices: Mapping[str, torch.Tensor]) -> None:
        """Remember the values of the protected weights.

        Args:
            parameters: All parameters of the model, by name.
            indices: Flat row-major indices (k,) of the protected weights, by parameter name.
        """
        self.restored = 0
        self._indices = {
            name: own_indices(parameters[name], index.to(parameters[name].device)) for name, index in indices.items()
        }
        self._values = {name: self._gathered(parameters[name], name) for name in indices}
        self._parameters = {name: parameters[name] for name in indices}

    def follow(self, parameters: Mapping[str, Parameter]) -> None:
        """Protect the parameters that took the place of those remembered, such as ones spread over processes.

        Args:
            parameters: All parameters of the model as it is now, by name.
        """
        for name, index in self._indices.items():
            if (parameter := parameters[name]) is not self._parameters[name]:
                here = is_own(parameter, index)
                self._indices[name] = own_indices(parameter, index).to(parameter.device)
                self._values[name] = self._values[name][here].to(parameter.device)
                self._parameters[name] = parameter

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Write the values back after every step of this optimizer.

        Args:
            optimizer: The one that trains the model; one wrapped by accelerate is unwrapped.

        Raises:
            ProtectionError: It trains none of the parameters that hold protected weights.
        """
        inner = innermost(optimizer)
        trained = {id(value) for group in inner.param_groups for value in group["params"]}
        own = [name for name, parameter in self._parameters.items() if id(parameter) in trained]
        if not own:
            raise ProtectionError(
                "The optimizer trains no weight matrix that holds protected weights, so nothing would be protected; "
                "with an adapter, protect where it is merged (ballast.merge_protected or `ballast merge`)."
            )
        return inner.register_step_post_hook(lambda *_: self.restore(own))

    @torch.no_grad()
    def restore(self, names: Iterable[str] | None = None) -> None:
        """Write the values back; those of all parameters, or of `names`, whose gradients are no longer needed."""
        for name in self._parameters if names is None else names:
            own_part(self._parameters[name]).view(-1)[self._indices[name]] = self._values[name]
        self.restored += 1

    def changed(self) -> int:
        """How many protected weights have other bits than those that were remembered."""
        return sum(self._differing().values())

    def verify(self) -> None:
        """Make sure that none has.

        Raises:
            ProtectionError: One has.
        """
        if differing := self._differing():
            raise ProtectionError(
                f"{sum(differing.values())} protected weights changed ({min(differing)}); something trains them "
                "outside of the optimizer that was given."
            )

    def _differing(self) -> dict[str, int]:
        found = {}
        for name, then in self._values.items():
            bits = BITS[then.element_size()]
            now = self._gathered(self._parameters[name], name)
            if count := int((now.view(bits) != then.view(bits)).sum()):
                found[name] = count
        return found

    def _gathered(self, parameter: Parameter, name: str) -> torch.Tensor:
        return own_part(parameter).detach().reshape(-1).index_select(0, self._indices[name])


def innermost(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer within the wrappers of accelerate."""
    while isinstance(wrapped := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = wrapped
    return optimizer
