"""Tokens as saturated logits, as the authors' code of arXiv 2604.08297 shows them to the judge.

Logits are 0 at the token u and -17 elsewhere. The judge reads q E with q = softmax of them, nearly the token itself,
and the gradient is taken with respect to the logits:

    dF/dlogit[v] = q[v] * (h[v] - sum_w q[w] h[w]),    h = dF/dq

so that of all tokens in effect only u has one, of about (1 - q[u]) times what h says.
"""

from __future__ import annotations

import math

import torch

FLOOR = -17.0


def probabilities(tokens: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """q, (S, size), for the tokens (S,)."""
    one = 1 / (1 + (size - 1) * math.exp(FLOOR))
    q = torch.full((len(tokens), size), one * math.exp(FLOOR), dtype=dtype, device=tokens.device)
    return q.scatter_(1, tokens.unsqueeze(1), one)


def logit_gradient(tokens: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """dF/dlogits from h, both (S, size); in fp64, since nearly all of the realised token's h cancels."""
    h = gradient.double()
    q = probabilities(tokens, h.shape[1], h.dtype)
    return (q * (h - (q * h).sum(dim=1, keepdim=True))).to(gradient.dtype)
