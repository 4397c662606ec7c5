"""What SET is compared with: AdamW on whole parameters, with a mask or without, and the adapters of PEFT.

They have the interface of `SparseAdamW`, so that `train_step` drives all of them alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import peft
import torch
from torch.nn import Parameter

from ballast import LanguageModel
from ballast.models import Part

LORA_SCALE = 4.0  # alpha / rank


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


class Dropped:
    """No optimizer: each gradient is dropped as soon as autograd finishes it."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.entries = self.state_bytes = 0
        self._hooks = [value.register_post_accumulate_grad_hook(self._drop) for value in parameters]

    @staticmethod
    def _drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    def __enter__(self) -> Dropped:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def set_lr(self, lr: float) -> None:
        """There is no rate."""

    def gradient_norm(self) -> float:
        return 0.0

    def step(self, scale: float = 1.0) -> None:
        """Nothing was gathered."""


class DenseAdamW:
    """AdamW on whole parameters.

    Attributes:
        entries: How many weights are trained.
        gradient_bytes: Bytes of the gradients that the last step found.
    """

    def __init__(
        self, parameters: Sequence[Parameter], lr: float, *, masks: Sequence[torch.Tensor] = (), beside: int = 0
    ) -> None:
        """Take over the parameters.

        Args:
            parameters: What is trained.
            lr: Learning rate.
            masks: 1 where a weight is trained and 0 elsewhere, in shape and dtype of each parameter; gradients are
                multiplied by them, as published code of SET does it. Without weight decay the others do not move.
            beside: Bytes that the plain model does not have: adapters and their indices.
        """
        self.parameters = parameters
        self.entries = sum(int(mask.sum(dtype=torch.int64)) for mask in masks) or sum(
            value.numel() for value in parameters
        )
        self.gradient_bytes = 0
        self._beside = beside + bytes_of(masks)
        self._optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
        self._hooks = [
            value.register_post_accumulate_grad_hook(lambda owner, mask=mask: self._mask(owner, mask))
            for value, mask in zip(parameters, masks, strict=bool(masks))
        ]

    @staticmethod
    def _mask(parameter: torch.Tensor, mask: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(mask)

    def __enter__(self) -> DenseAdamW:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def state_bytes(self) -> int:
        """Bytes held beside the model: gradients, moments, masks and adapters."""
        moments = [value for state in self._optimizer.state.values() for value in state.values() if value.dim()]
        return self.gradient_bytes + bytes_of(moments) + self._beside

    def set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def gradient_norm(self) -> float:
        return float(torch.nn.utils.get_total_norm([value.grad for value in self.parameters if value.grad is not None]))

    def step(self, scale: float = 1.0) -> None:
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        self.gradient_bytes = bytes_of(gradients)
        for gradient in gradients:
            gradient.mul_(scale)
        self._optimizer.step()
        self._optimizer.zero_grad()


class Adapter(NamedTuple):
    """Adapters in a model.

    Attributes:
        parameters: What is trained.
        bytes: Theirs and those of their indices.
    """

    parameters: list[Parameter]
    bytes: int


@contextmanager
def adapter(lm: LanguageModel, kind: str, parts: Sequence[Part], rank: int, seed: int) -> Iterator[Adapter]:
    """`lora` or `shira` of PEFT on the linear layers of `parts`; the adapters are gone behind the block.

    Both train `rank` * (rows + columns) weights of a matrix. Where SHiRA's are is PEFT's own random choice, the same
    one for all matrices of a shape.
    """
    modules = [part.name.removesuffix(".weight") for part in parts]
    torch.manual_seed(seed)
    config: peft.PeftConfig = (
        peft.LoraConfig(r=rank, lora_alpha=round(LORA_SCALE * rank), target_modules=modules)
        if kind == "lora"
        else peft.ShiraConfig(r=rank, target_modules=modules, random_seed=seed)
    )
    wrapped = peft.get_peft_model(lm.model, config)
    trained = [value for value in wrapped.parameters() if value.requires_grad]
    indices = [
        index
        for module in wrapped.modules()
        if isinstance(module, peft.tuners.shira.ShiraLayer)
        for index in module.shira_indices.values()
    ]
    try:
        yield Adapter(trained, bytes_of([*trained, *indices]))
    finally:
        wrapped.unload()


def nearest_rank(parts: Sequence[Part], entries: int) -> int:
    """The rank with which adapters on `parts` train a number of weights nearest to `entries`; at least 1."""
    return max(1, round(entries / sum(sum(part.shape) for part in parts)))
