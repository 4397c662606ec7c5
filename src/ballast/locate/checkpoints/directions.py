"""The directions in which a weight matrix writes most: the top right singular vectors of Y = X M^T.

X (tokens, in) is what the matrix M (out, in) reads at the response tokens. Neither X nor Y is stored: with M = L R and
Z = X R^T, one forward pass sums the Gram matrix G = Z^T Z, and (ours)

    Y^T Y = L G L^T,    L = Q T (QR decomposition),    T G T^T = W diag(s^2) W^T,    V = the first columns of Q W.

G is as wide as the rank of an update, or as the smaller side of a full matrix. Sums and decompositions are fp64: where
there are fewer tokens than directions, the rank of Y is then sharp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch

from ballast.errors import NumericalError, UsageError
from ballast.locate.inputs import Inputs, Reader, read_inputs
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel


class Matrix(NamedTuple):
    """One weight matrix of a model.

    Attributes:
        name: The parameter's name.
        expert: Which of its matrices if it is a stack of experts, else None.
    """

    name: str
    expert: int | None

    def __str__(self) -> str:
        return self.name if self.expert is None else f"{self.name}[{self.expert}]"


class Factors(NamedTuple):
    """A matrix (out, in) as left @ right.

    Attributes:
        left: (out, k); None for the identity.
        right: (k, in); None for the identity.
    """

    left: torch.Tensor | None
    right: torch.Tensor | None


def matrices_of(lm: LanguageModel, tensors: Mapping[str, torch.Tensor]) -> dict[Matrix, torch.Tensor]:
    """Every weight matrix (out, in) as a view, from tensors with the names and shapes of eligible parameters."""
    found = {}
    for name, tensor in tensors.items():
        part = lm.parts.by_name(name)
        oriented = tensor.detach() if part.orientation == "out_in" else tensor.detach().transpose(-2, -1)
        if part.expert_dim is None:
            found[Matrix(name, None)] = oriented
        else:
            found |= {Matrix(name, number): expert for number, expert in enumerate(oriented.unbind(part.expert_dim))}
    return found


def split(matrix: torch.Tensor) -> Factors:
    """A full matrix and the identity, in the order that makes k its smaller side."""
    return Factors(matrix, None) if matrix.shape[0] > matrix.shape[1] else Factors(None, matrix)


def response_grams(
    lm: LanguageModel, rows: Sequence[WeightedRow], batch_size: int, factors: Mapping[Matrix, Factors]
) -> dict[Matrix, torch.Tensor]:
    """Sum Z^T Z over all response tokens in one forward pass, Z = X R^T.

    Args:
        lm: The model whose activations X are.
        rows: Prompts with their responses; a token counts if it is itself a response token.
        batch_size: Rows per forward pass.
        factors: The matrices of interest; of each only R is used.

    Returns:
        (k, k) fp64 per matrix; experts that no response token reached are missing.

    Raises:
        NumericalError: A sum is not finite.
        ModelError: See `observed_inputs`.
    """
    grams: dict[Matrix, torch.Tensor] = {}

    def see(inputs: Inputs, _: torch.Tensor) -> None:
        matrix = Matrix(inputs.part.name, inputs.expert)
        if matrix not in factors or not len(inputs.values):
            return
        values, right = inputs.values.float(), factors[matrix].right
        read = (values if right is None else values @ right.float().T).double()  # (N, k)
        if matrix not in grams:
            grams[matrix] = read.new_zeros(read.shape[1], read.shape[1])
        grams[matrix].addmm_(read.T, read)

    read_inputs(lm, rows, batch_size, [Reader(lambda batch: batch.response_mask.float(), see)])
    for matrix, gram in grams.items():
        if not torch.isfinite(gram).all():
            raise NumericalError(f"What {matrix} reads is not finite; open the model in bfloat16 or float32.")
    return grams


def leading_directions(factors: Factors, gram: torch.Tensor, count: int) -> torch.Tensor:
    """The top right singular vectors of Y.

    Args:
        factors: The matrix.
        gram: Its sum from `response_grams`.
        count: How many; see `share_of_directions`.

    Returns:
        (out, count) fp64, orthonormal columns. Fewer if the rank of Y is lower: a direction in which no response token
        writes could be any.
    """
    basis, inner = None, gram
    if factors.left is not None:
        basis, triangle = torch.linalg.qr(factors.left.double())
        inner = triangle @ gram @ triangle.T
    values, vectors = _eigen(inner)  # ascending
    rank = int((values > values[-1] * len(values) * torch.finfo(torch.float64).eps).sum())
    leading: torch.Tensor = vectors[:, len(values) - min(count, rank) :]
    return leading if basis is None else basis @ leading


def _eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (k,), ascending, and eigenvectors (k, k) of a symmetric matrix without negative eigenvalues."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError as error:
        if "failed to converge" not in str(error):
            raise
        # LAPACK's fast driver gives up on some matrices of low rank; the decomposition is the same for these
        left, singular, _ = torch.linalg.svd(matrix)
        values, vectors = singular.flip(0), left.flip(1)
    return values, vectors


def share_of_directions(factors: Factors, share: Fraction) -> int:
    """floor(share * min(out, k)) directions of a matrix.

    Raises:
        UsageError: That is none.
    """
    most = min(min(factor.shape) for factor in factors if factor is not None)
    if not math.floor(share * most):
        raise UsageError(f"The share {float(share):g} of {most} directions is none; ask for a larger share.")
    return math.floor(share * most)
