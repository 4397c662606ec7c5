"""Adam on a low-rank change of whole weight matrices, without adapters in the model.

    W = W_0 + B A,    dL/dB = (dL/dW) A^T,    dL/dA = B^T (dL/dW)                       (the update of LoRA, 2106.09685)

The model keeps plain weights: gradients of W are folded into those of B and A as soon as autograd finishes them, and
each step writes W.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import Parameter

from ballast.errors import UsageError
from ballast.models.fingerprint import seed_of


class LowRankAdam:
    """Adam on factors of matrices; use as a context manager, so that its hooks are removed.

    A is drawn with variance 1 / rank and B begins at zero, so that in the first steps a weight moves about as far as
    Adam at this learning rate would move it by itself.
    """

    def __init__(self, parameters: Mapping[str, Parameter], *, rank: int, lr: float, seed: int) -> None:
        """Take over the matrices.

        Args:
            parameters: The matrices by name, (..., rows, columns); each expert of a stack gets factors of its own.
            rank: Of the change.
            lr: Learning rate; `set_lr` changes it.
            seed: Of the factors.

        Raises:
            UsageError: The rank is below 1, or not below that of a matrix.
        """
        self.parameters = dict(parameters)
        self._start = {name: value.detach().to(torch.float32, copy=True) for name, value in parameters.items()}
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, value in self._start.items():
            *stack, rows, columns = value.shape
            if not 0 < rank < min(rows, columns):
                raise UsageError(f"A change of {name} cannot have rank {rank}; use 1 to {min(rows, columns) - 1}.")
            generator = torch.Generator().manual_seed(seed_of(seed, name))
            right = torch.randn((*stack, rank, columns), generator=generator).to(value.device) / rank**0.5
            self._factors[name] = torch.zeros((*stack, rows, rank), device=value.device), right
        for pair in self._factors.values():
            for factor in pair:
                factor.grad = torch.zeros_like(factor)
        self._optimizer = torch.optim.Adam([factor for pair in self._factors.values() for factor in pair], lr=lr)
        self._hooks = [
            value.register_post_accumulate_grad_hook(lambda _, name=name: self._consume(name))
            for name, value in self.parameters.items()
        ]

    def __enter__(self) -> LowRankAdam:
        """Nothing to set up beyond the constructor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks; the weights keep their tuned values."""
        for hook in self._hooks:
            hook.remove()

    def _consume(self, name: str) -> None:
        gradient = self.parameters[name].grad
        assert gradient is not None
        left, right = self._factors[name]
        assert left.grad is not None
        assert right.grad is not None
        left.grad += gradient.float() @ right.mT
        right.grad += left.mT @ gradient.float()
        self.parameters[name].grad = None

    def set_lr(self, lr: float) -> None:
        """Use another learning rate from the next step on."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def gradient_norm(self) -> float:
        """Euclidean norm of the gathered gradients of both factors."""
        gathered = [factor.grad for pair in self._factors.values() for factor in pair if factor.grad is not None]
        return float(torch.nn.utils.get_total_norm(gathered))

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One step on the gathered gradients times `scale`; writes the weights and clears the gradients."""
        for pair in self._factors.values():
            for factor in pair:
                assert factor.grad is not None
                factor.grad.mul_(scale)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        for name, (left, right) in self._factors.items():
            self.parameters[name].copy_(self._start[name] + left @ right)
