"""AdamW whose state exists only for selected entries of the weights.

Per parameter it keeps the flat indices, an fp32 master copy of the selected entries and AdamW's two moments.
Gradients are gathered into an fp32 buffer as soon as autograd finishes them and dropped. Masters matter: at bf16 a step
of 1e-5 on a weight of 0.02 is mostly lost when it is made in place.

In fp32 and without clipping the weights equal, bit for bit, those of dense AdamW that restores all other entries after
each step. Of a model that is spread over processes each of them keeps the entries that it holds; together they compute
what one process does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import Parameter

from ballast.errors import NumericalError, RegionError
from ballast.models.exchange import Exchange
from ballast.shards import joined_tensors, mesh_of, own_indices, own_part

BYTES_PER_ENTRY = 20  # index 4, master 4, two moments 8, gradient buffer 4
INT32_LIMIT = 2**31


class SparseAdamW:
    """AdamW on entries of parameters; use as a context manager, so that its hooks are removed.

    Attributes:
        masters: fp32 values of the selected entries that this process holds, (k,) per parameter name.
        entries: How many weights are trained, by all processes.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        indices: Mapping[str, torch.Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        """Take over the selected entries.

        Args:
            parameters: All parameters that have selected entries, by name.
            indices: Sorted flat row-major indices per name, (k,) integer.
            lr: Learning rate; `set_lr` changes it.
            betas: AdamW's decay rates.
            eps: AdamW's epsilon.
            weight_decay: Decoupled weight decay of the selected entries.
            foreach: Passed to torch's AdamW.
            exchange: Of a model that is spread over processes: brings the gradients of all of them.

        Raises:
            RegionError: No entry is selected.
        """
        if not any(len(index) for index in indices.values()):
            raise RegionError("The region selects no weight of this model; locate it on the model that is tuned.")
        self.parameters = {name: parameters[name] for name, index in indices.items() if len(index)}
        self.entries = sum(len(indices[name]) for name in self.parameters)
        self.indices = {
            name: own_indices(
                value, indices[name].to(value.device, torch.int32 if value.numel() < INT32_LIMIT else torch.int64)
            )
            for name, value in self.parameters.items()
        }
        self._exchange = exchange
        self.masters = {
            name: Parameter(self._gather(name, own_part(value).detach())) for name, value in self.parameters.items()
        }
        self._buffers = {name: torch.zeros_like(master) for name, master in self.masters.items()}
        self._optimizer = torch.optim.AdamW(
            self.masters.values(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach
        )
        self._hooks = [
            value.register_post_accumulate_grad_hook(lambda _, name=name: self._consume(name))
            for name, value in self.parameters.items()
        ]

    def __enter__(self) -> SparseAdamW:
        """Nothing to set up beyond the constructor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks; the weights keep their tuned values."""
        for hook in self._hooks:
            hook.remove()

    def _gather(self, name: str, dense: torch.Tensor) -> torch.Tensor:
        return dense.reshape(-1).index_select(0, self.indices[name]).float()

    def _consume(self, name: str) -> None:
        gradient = self.parameters[name].grad
        assert gradient is not None
        for part in [gradient] if self._exchange is None else self._exchange.parts(gradient):
            self._buffers[name] += self._gather(name, part)
        self.parameters[name].grad = None

    @property
    def state_bytes(self) -> int:
        """Bytes held beside the model: indices, masters, moments and gradient buffers."""
        held = [*self.indices.values(), *self.masters.values(), *self._buffers.values()]
        for state in self._optimizer.state.values():
            held += [value for value in state.values() if isinstance(value, torch.Tensor) and value.dim()]
        return sum(value.numel() * value.element_size() for value in held)

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from the next step on."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def gradient_norm(self) -> float:
        """Euclidean norm of the gathered gradients.

        Raises:
            NumericalError: It is not finite.
        """
        whole = self.joined(self._buffers).values()
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in whole]))
        if not torch.isfinite(norm):
            raise NumericalError("The gradient is not finite; open the model in float32 or use a lower learning rate.")
        return float(norm)

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One AdamW step on the gathered gradients times `scale`; writes the weights and clears the buffers."""
        for name, master in self.masters.items():
            master.grad = self._buffers[name].mul_(scale) if scale != 1.0 else self._buffers[name]
        self._optimizer.step()
        for name, master in self.masters.items():
            master.grad = None
            self._buffers[name].zero_()
        self.write(self.masters)

    @torch.no_grad()
    def write(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put values (k,) per name into the selected entries of the weights; the masters do not change."""
        for name, parameter in self.parameters.items():
            own_part(parameter).view(-1)[self.indices[name]] = values[name].to(parameter.dtype)

    def current(self) -> dict[str, torch.Tensor]:
        """A copy of the selected entries (k,) per name, in the dtype of the weights."""
        return {
            name: own_part(value).detach().view(-1).index_select(0, self.indices[name])
            for name, value in self.parameters.items()
        }

    def joined(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values (k,) per name of all processes, in the order of the whole parameters; communicates."""
        return {name: joined_tensors(value, mesh_of(self.parameters[name])) for name, value in values.items()}

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Masters and moments as flat tensors, for a checkpoint."""
        tensors = {}
        for name, master in self.masters.items():
            tensors[f"{name}.master"] = master.detach()
            for key, value in self._optimizer.state.get(master, {}).items():
                tensors[f"{name}.{key}"] = torch.as_tensor(value).detach()
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state_tensors`; writes the masters into the weights."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"{name}.master"])
            state: dict[str, Any] = {
                key: tensors[f"{name}.{key}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in tensors
            }
            if state:
                self._optimizer.state[master] = state
        self.write(self.masters)
