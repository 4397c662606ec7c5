"""What every attention layer computes with: queries, keys and values after rotation, seen or changed on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ballast.errors import ModelError
from ballast.models.language_model import LanguageModel

OBSERVED = "ballast_observed"


class Attention(NamedTuple):
    """The tensors of one attention layer in one pass; H query heads, G key and value heads, d the head size.

    Attributes:
        layer: Index of the decoder block.
        module: The attention module.
        query: (B, H, T, d) as multiplied with the keys: rotated, normed where the model norms them.
        key: (B, G, T, d) the same.
        value: (B, G, T, d).
        mask: Added to the logits, broadcast to (B, H, T, T); None without one.
        scaling: Factor of the logits.
        softcap: Bound of the logits by a hyperbolic tangent; None without one.
    """

    layer: int
    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.query.shape[1] // self.key.shape[1]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Where each position looks: cap, mask, attention sink and softmax over scaled logits.

        Args:
            logits: (B, H, ..., T, T) fp32, scaled; more axes may stand behind the heads.

        Returns:
            The same shape; the share of a sink is left out.
        """
        more = logits.dim() - 4
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.mask is not None:
            mask = self.mask.float()
            logits = logits + mask.reshape(*mask.shape[:2], *[1] * more, *mask.shape[2:])
        sinks = getattr(self.module, "sinks", None)
        if sinks is None:
            return logits.softmax(dim=-1)
        column = sinks.detach().float().reshape(1, -1, *[1] * (more + 2)).expand(*logits.shape[:-1], 1)
        return torch.cat([logits, column], dim=-1).softmax(dim=-1)[..., :-1]


def precise(values: torch.Tensor) -> torch.Tensor:
    """The values in fp32, or in fp64 if that is what they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def shows_attention(lm: LanguageModel) -> bool:
    """Whether the model computes attention through the interface of transformers, so that it can be observed."""
    return lm.model._can_set_attn_implementation()


@contextmanager
def observed_attention(lm: LanguageModel, see: Callable[[Attention], Attention | None]) -> Iterator[None]:
    """Call `see` with the tensors of every attention layer, for every forward pass inside the block.

    If it returns something, the model goes on with the query, key and value of that. The model computes attention in
    its plain ("eager") way meanwhile.

    Raises:
        ModelError: The model does not compute attention through the interface of transformers.
    """
    before = lm.model.config.get_text_config()._attn_implementation
    if not shows_attention(lm):
        raise ModelError(
            f"{type(lm.model).__name__} does not show its attention, so its heads cannot be scored; use a method that "
            "needs gradients or the inputs of the projections."
        )

    def seen(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        layer: Any = module.layer_idx
        own = Attention(int(layer), module, query, key, value, attention_mask, scale, softcap)
        used = see(own) or own
        plain = sys.modules[type(module).__module__].eager_attention_forward
        capped = {} if softcap is None else {"softcap": softcap}
        answer: tuple[torch.Tensor, torch.Tensor] = plain(
            module, used.query, used.key, used.value, attention_mask, scaling=scale, **capped, **others
        )
        return answer

    AttentionInterface.register(OBSERVED, seen)
    AttentionMaskInterface.register(OBSERVED, eager_mask)
    try:
        lm.model.set_attn_implementation(OBSERVED)
        yield
    finally:
        lm.model.set_attn_implementation(before)
