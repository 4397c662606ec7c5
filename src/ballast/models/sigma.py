"""The scale of a weight matrix: the standard deviation of its entries (arXiv 2604.08297)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from ballast.models.parts import Part
from ballast.shards import first_row, own_part, whole

SigmaScope = Literal["matrix", "slice", "tensor"]


def matrices(part: Part, tensor: torch.Tensor, scope: SigmaScope = "matrix") -> Iterator[torch.Tensor]:
    """Views of the weight matrices that one parameter stores.

    Args:
        part: The parameter's entry in the part map.
        tensor: Same shape as the parameter: 2-D, or 3-D with one slice per expert.
        scope: `slice` keeps a gate and an up that are fused together, `tensor` all experts too.

    Yields:
        The whole tensor for a 2-D parameter; per expert one matrix, or the gate half and the up half if it fuses both.
    """
    if part.expert_dim is None or scope == "tensor":
        yield tensor
        return
    for expert in tensor.unbind(part.expert_dim):
        if part.halves is None or scope == "slice":
            yield expert
            continue
        axis = 0 if part.orientation == "out_in" else 1
        if part.halves == "contiguous":
            yield from expert.chunk(2, dim=axis)
        else:
            yield from (expert[0::2], expert[1::2]) if axis == 0 else (expert[:, 0::2], expert[:, 1::2])


def scale_by_sigma(part: Part, weight: torch.Tensor, values: torch.Tensor, scope: SigmaScope = "matrix") -> list[float]:
    """Multiply `values` in place by the unbiased standard deviation of each matrix of `weight`.

    Args:
        part: The parameter's entry in the part map.
        weight: The parameter, any float dtype; sums are made in fp64 and the result is rounded to fp32. One that is
            spread over processes is put together for it.
        values: fp32, same shape, spread as the weight is; changed.
        scope: What counts as one matrix, see `matrices`.

    Returns:
        The standard deviations, one per matrix; 0 for a matrix with one entry.
    """
    sigmas = [_sigma(matrix) for matrix in matrices(part, whole(weight.detach()), scope)]
    # Rows of a 3-D parameter are experts, so a process that holds some of them holds whole matrices.
    earlier = 0 if part.expert_dim is None else first_row(values) * len(sigmas) // part.shape[part.expert_dim]
    for sigma, scored in zip(sigmas[earlier:], matrices(part, own_part(values), scope), strict=False):
        scored.mul_(sigma.to(scored.device))
    return [float(sigma) for sigma in sigmas]


def _sigma(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.double().std().float() if matrix.numel() > 1 else torch.zeros(())
