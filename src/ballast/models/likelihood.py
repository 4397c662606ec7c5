"""The probability of given responses under a model: one forward pass, logits only where they are needed."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def response_logits(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_mask: torch.Tensor
) -> torch.Tensor:
    """Logits that predict each response token.

    Args:
        model: A causal language model.
        input_ids: (B, T) token ids, padded on either side.
        attention_mask: (B, T) bool or int, false on padding.
        response_mask: (B, T) bool, true where the token is part of the response; never true in the first column.

    Returns:
        (R, V) in the model's dtype, R response tokens in row-major order of `response_mask`.
    """
    predicting = response_mask[:, 1:]  # the logits at column t predict the token at column t + 1
    columns = predicting.any(dim=0).nonzero().squeeze(1)
    position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    logits: torch.Tensor = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        logits_to_keep=columns,
        use_cache=False,
    ).logits  # (B, len(columns), V)
    return logits[predicting[:, columns]]


def response_log_probabilities(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_mask: torch.Tensor
) -> torch.Tensor:
    """Log-probability (R,) fp32 of each response token given all tokens before it; see `response_logits`."""
    logits = response_logits(model, input_ids, attention_mask, response_mask).float()
    chosen = input_ids[response_mask].unsqueeze(1)  # (R, 1)
    return logits.gather(1, chosen).squeeze(1) - logits.logsumexp(dim=1)
