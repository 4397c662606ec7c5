"""Token rows of unequal length as one padded batch with its masks; the only place where these masks are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from ballast.prompts.chat import Rendered

Side = Literal["left", "right"]


class TokenBatch(NamedTuple):
    """Rows padded to the length of the longest.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64; 1 at tokens, 0 at padding.
        response_mask: (B, T) bool; True where the token itself belongs to the answer. The logits that predict it are
            one position to the left.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor

    @property
    def position_ids(self) -> torch.Tensor:
        """(B, T) int64 positions that count tokens only.

        Models with absolute positions need them where padding is on the left.
        """
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)

    def prompts(self) -> TokenBatch:
        """The same batch with answers taken for padding."""
        return self._replace(
            attention_mask=self.attention_mask * ~self.response_mask,
            response_mask=torch.zeros_like(self.response_mask),
        )

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(*(tensor.to(device) for tensor in self))


def collate(rendered: Sequence[Rendered], pad_id: int, side: Side = "right") -> TokenBatch:
    """Pad rows to one length and mark their prompt, answer and padding.

    Args:
        rendered: At least one row.
        pad_id: Any token id; padding is masked.
        side: Where padding goes: `right` for scoring given answers, `left` for generating.
    """
    length = max(len(row.ids) for row in rendered)
    input_ids = torch.full((len(rendered), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for index, row in enumerate(rendered):
        start = length - len(row.ids) if side == "left" else 0
        end = start + len(row.ids)
        input_ids[index, start:end] = torch.tensor(row.ids)
        attention_mask[index, start:end] = 1
        response_mask[index, start + row.prompt_length : end] = True
    return TokenBatch(input_ids, attention_mask, response_mask)
