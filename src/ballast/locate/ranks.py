"""ActSVD: the ranks of a weight matrix that carry safety, and what is left without them (arXiv 2402.05162).

    Y = X W^T at the response tokens,  V = top right singular vectors of Y,  P = V V^T  (out, out)
    removed    W - P W
    isolated   W - (I - P_u) P_s W,  P_s of harmful prompts with refusals, P_u of harmless ones with answers

These are directions of a matrix, not weights: each changes every entry, so there is no score per weight and no region.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch

from ballast.locate.checkpoints.directions import (
    Matrix,
    leading_directions,
    matrices_of,
    response_grams,
    share_of_directions,
    split,
)
from ballast.locate.engine import eligible_parameters
from ballast.locate.references import refusal_rows
from ballast.models import LanguageModel
from ballast.prompts import PromptSet
from ballast.prompts.refusals import REFUSALS
from ballast.regions import exact_fraction
from ballast.regions.subspaces import SubspaceOverlap, subspace_overlap


def safety_projection(
    lm: LanguageModel,
    prompts: PromptSet,
    share: Fraction | float | str,
    *,
    refusals: tuple[str, ...] = REFUSALS[:1],
    batch_size: int = 8,
) -> Iterator[tuple[Matrix, torch.Tensor]]:
    """The orthogonal projection on the directions in which each eligible weight matrix writes most.

    Args:
        lm: The model; its weights are unchanged.
        prompts: Harmful prompts; those with a response use it. Harmless prompts with answers give P_u.
        share: Ranks of each matrix, in (0, 1]: floor(share * min(out, in)).
        refusals: Wordings used for prompts that bring no response of their own.
        batch_size: Rows per forward pass.

    Yields:
        Each matrix, in the order of the model's parameters, and its P (out, out) fp64. The rank is lower where Y has
        a lower one; P is 0 for an expert that no response token reached.

    Raises:
        UsageError: The share is outside of (0, 1] or rounds down to no rank.
        PromptError: A prompt does not fit the model.
        NumericalError: An activation is not finite.
    """
    exact = exact_fraction(share)
    weights = matrices_of(lm, eligible_parameters(lm))
    factors = {matrix: split(weight) for matrix, weight in weights.items()}
    counts = {matrix: share_of_directions(factor, exact) for matrix, factor in factors.items()}
    grams = response_grams(lm, refusal_rows(lm, prompts, refusals), batch_size, factors)
    for matrix, weight in weights.items():
        directions = weight.new_zeros(len(weight), 0, dtype=torch.float64)
        if matrix in grams:
            directions = leading_directions(factors[matrix], grams[matrix], counts[matrix])
        yield matrix, directions @ directions.T


def rank_overlaps(
    lm: LanguageModel,
    first: PromptSet,
    second: PromptSet,
    share: Fraction | float | str,
    *,
    refusals: tuple[str, ...] = REFUSALS[:1],
    batch_size: int = 8,
) -> Iterator[tuple[Matrix, SubspaceOverlap | None]]:
    """How much the safety ranks found with two prompt sets have in common, matrix by matrix.

    Args:
        lm: As for `safety_projection`.
        first: As its prompts.
        second: Other prompts.
        share: As for `safety_projection`.
        refusals: As for `safety_projection`.
        batch_size: As for `safety_projection`.

    Yields:
        Each matrix and its overlap; None for an expert that no response token of one of the sets reached.

    Raises:
        BallastError: As `safety_projection`.
    """
    settings: dict[str, Any] = {"refusals": refusals, "batch_size": batch_size}
    both = (safety_projection(lm, prompts, share, **settings) for prompts in (first, second))
    for (matrix, one), (_, other) in zip(*both, strict=True):
        yield matrix, subspace_overlap(one, other) if one.any() and other.any() else None


def removed(weight: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """W - P W: the matrix without its safety ranks (equation of ActSVD's removal).

    Args:
        weight: (out, in), a view as `matrices_of` gives it.
        projection: P, (out, out) fp64.
    """
    exact = weight.double()
    return (exact - projection @ exact).to(weight.dtype)


def isolated(weight: torch.Tensor, safety: torch.Tensor, utility: torch.Tensor) -> torch.Tensor:
    """W - (I - P_u) P_s W: the matrix without those of its safety ranks that utility does not use.

    For every input, the part of the output in the utility directions is unchanged: P_u W' = P_u W.

    Args:
        weight: (out, in), a view as `matrices_of` gives it.
        safety: P_s, (out, out) fp64.
        utility: P_u, (out, out) fp64.
    """
    exact = weight.double()
    carried = safety @ exact
    return (exact - carried + utility @ carried).to(weight.dtype)
