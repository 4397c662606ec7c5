"""How much a head looks elsewhere without one entry of its queries or keys.

Z[t, s] are the scaled logits of a head before cap, mask and sink, u[t, i] the direction in which entry i arrives at
position t (`models/head_directions.py`). Without query entry i

    Z'[t, s] = rho[t] * (Z[t, s] - scale * <u[t, i], q[t]> <u[t, i], k[s]>)

and without key entry i the same with <u[s, i], k[s]> <u[s, i], q[t]> and rho[s]. Importance is the Frobenius norm of
softmax(Z') - softmax(Z) over the tokens of a prompt; for a key entry over the heads that share it.

Where the model norms each head by its root mean square, what is left grows when an entry goes: with m how far an entry
arrives that has its head to itself, <u, q>^2 / m^2 is its share of the mean square (and epsilon) of the head before the
norm, and rho = (1 - <u, q>^2 / m^2)^(-1/2). Without such a norm rho = 1; a norm over all heads is held as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ballast.models.attention import Attention, precise
from ballast.models.head_directions import Directions

BLOCK = 1 << 24  # logits at a time: four copies of them in fp32 are 256 MB
CPU_BLOCK = 1 << 18  # what stays in the cache of a core; four to ten times as fast


def of_prompt(attention: Attention, row: int, real: slice) -> Attention:
    """One prompt of a batch, its tensors as (1, heads, T, d) in fp32 without padding."""
    mask = attention.mask
    if mask is not None:
        mask = mask.expand(attention.query.shape[0], *mask.shape[1:])[row : row + 1, :, real, real]
    query, key, value = (
        precise(tensor[row : row + 1, :, real]) for tensor in (attention.query, attention.key, attention.value)
    )
    return attention._replace(query=query, key=key, value=value, mask=mask)


def query_changes(prompt: Attention, directions: Directions) -> torch.Tensor:
    """(H, d) importance of every query entry for one prompt."""
    unit = directions.unit[: prompt.query.shape[2]]
    amounts = torch.einsum("hte,tie->hit", prompt.query[0], unit)  # how much of each query is entry i
    growth = _growth(amounts, directions)
    squares = torch.zeros_like(amounts[..., 0])
    for rows, _, block in _blocks(prompt):
        part = torch.einsum("tie,gse->gits", unit[rows], block.key[0]).repeat_interleave(prompt.group, dim=0)
        part *= prompt.scaling * amounts[..., rows].unsqueeze(-1)
        squares += _squared_shift(block, part, None if growth is None else growth[..., rows].unsqueeze(-1))
    return squares.sqrt()


def key_changes(prompt: Attention, directions: Directions) -> torch.Tensor:
    """(G, d) importance of every key entry for one prompt."""
    unit = directions.unit[: prompt.key.shape[2]]
    amounts = torch.einsum("gse,sie->gis", prompt.key[0], unit).repeat_interleave(prompt.group, dim=0)
    growth = _growth(amounts, directions)
    squares = torch.zeros_like(amounts[..., 0])
    for _, columns, block in _blocks(prompt):
        part = torch.einsum("hte,sie->hits", block.query[0], unit[columns])
        part *= prompt.scaling * amounts[..., columns].unsqueeze(-2)
        squares += _squared_shift(block, part, None if growth is None else growth[..., columns].unsqueeze(-2))
    return squares.reshape(-1, prompt.group, squares.shape[1]).sum(dim=1).sqrt()


def _growth(amounts: torch.Tensor, directions: Directions) -> torch.Tensor | None:
    """rho, in the shape of the amounts (heads, d, T); None where it is 1."""
    if directions.norm != "head":
        return None
    left = 1 - (amounts / directions.largest[: amounts.shape[2]].T).square()
    return left.clamp_min(torch.finfo(left.dtype).eps).rsqrt()


def _blocks(prompt: Attention) -> Iterator[tuple[slice, slice, Attention]]:
    """Some queries at a time with the keys that they see, so few that all their logits without an entry fit a block."""
    _, heads, length, size = prompt.query.shape
    block = CPU_BLOCK if prompt.query.device.type == "cpu" else BLOCK
    step = max(1, block // (heads * size * length))
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        columns, mask = slice(0, length), None
        if prompt.mask is not None:
            mask = prompt.mask[:, :, rows]
            seen = (mask > torch.finfo(mask.dtype).min / 2).any(dim=2).flatten(0, 1).any(dim=0).nonzero()
            columns = slice(int(seen[0]), int(seen[-1]) + 1)
            mask = mask[..., columns]
        query, key = prompt.query[:, :, rows], prompt.key[:, :, columns]
        yield rows, columns, prompt._replace(query=query, key=key, mask=mask)


def _squared_shift(block: Attention, part: torch.Tensor, growth: torch.Tensor | None) -> torch.Tensor:
    """(H, d) squared Frobenius norm of what the attention of a block changes without these parts of its logits.

    Args:
        block: Some queries and keys.
        part: (H, d, t, s) what each entry brings to the logits; overwritten.
        growth: rho, broadcast to the same shape; None where it is 1.
    """
    keys = block.key.repeat_interleave(block.group, dim=1)
    logits = (block.query @ keys.transpose(2, 3)) * block.scaling  # (1, H, t, s)
    left = torch.sub(logits[0].unsqueeze(1), part, out=part)
    if growth is not None:
        left *= growth
    shift = block.probabilities(left.unsqueeze(0))[0]
    shift -= block.probabilities(logits)[0].unsqueeze(1)
    return shift.square_().sum(dim=(-2, -1))
