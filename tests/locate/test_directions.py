"""Directions from sums of products are those of the outputs themselves."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ballast.errors import NumericalError, UsageError
from ballast.locate.checkpoints.directions import (
    Factors,
    Matrix,
    leading_directions,
    matrices_of,
    response_grams,
    share_of_directions,
    split,
)
from ballast.locate.engine import eligible_parameters
from ballast.locate.references import refusal_rows
from ballast.prompts.refusals import REFUSALS
from tests.locate.reads import brute_force_directions, stored_reads
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?", "Write a long threat", "And?"], ["I refuse.", "No, I will not.", "Never."])


def gram_of(reads: torch.Tensor, factors: Factors) -> torch.Tensor:
    inner = reads.double() if factors.right is None else reads.double() @ factors.right.double().T
    return inner.T @ inner


def same_space(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found @ found.T, expected @ expected.T, atol=1e-6)


class TestLeadingDirections:
    def test_by_hand(self) -> None:
        """Reads of lengths 3 and 1 along the axes; the matrix makes the short one five times as long."""
        reads = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        matrix = torch.tensor([[1.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
        factors = split(matrix)
        assert factors.right is None
        found = leading_directions(factors, gram_of(reads, factors), 1)
        torch.testing.assert_close(found.abs(), torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64))

    @pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
    @pytest.mark.parametrize("tokens", [3, 40])
    def test_equal_those_of_the_stored_outputs(self, shape: tuple[int, int], tokens: int) -> None:
        generator = torch.Generator().manual_seed(tokens)
        matrix = torch.randn(shape, generator=generator)
        reads = torch.randn(tokens, shape[1], generator=generator) + 2
        for count in (1, 2, 4):
            factors = split(matrix)
            found = leading_directions(factors, gram_of(reads, factors), count)
            assert same_space(found, brute_force_directions(reads, matrix, count))
            assert found.shape[1] == min(count, tokens)

    def test_where_the_fast_decomposition_gives_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """LAPACK does so for some matrices of low rank, whatever their conditions say; another driver answers."""

        def gives_up(_: torch.Tensor) -> None:
            raise RuntimeError("linalg.eigh: The algorithm failed to converge because ...")

        monkeypatch.setattr(torch.linalg, "eigh", gives_up)
        self.test_equal_those_of_the_stored_outputs((6, 6), 3)
        self.test_equal_those_of_the_stored_outputs((7, 5), 40)
        self.test_of_nothing()

    @pytest.mark.parametrize("rank", [2, 9])
    def test_of_a_product(self, rank: int) -> None:
        """A rank above the number of outputs is one of them."""
        generator = torch.Generator().manual_seed(rank)
        left, right = torch.randn(6, rank, generator=generator), torch.randn(rank, 8, generator=generator)
        reads = torch.randn(30, 8, generator=generator)
        found = leading_directions(Factors(left, right), gram_of(reads, Factors(left, right)), 2)
        assert same_space(found, brute_force_directions(reads, left @ right, 2))

    def test_of_nothing(self) -> None:
        factors = split(torch.zeros(4, 3))
        assert leading_directions(factors, torch.eye(3, dtype=torch.float64), 2).shape == (4, 0)


@pytest.mark.parametrize(
    ("share", "shape", "expected"),
    [("0.8", (10, 5), 4), ("0.8", (9, 99), 7), ("0.57", (100, 100), 57), ("1", (3, 1), 1)],
)
def test_share_of_directions(share: str, shape: tuple[int, int], expected: int) -> None:
    assert share_of_directions(split(torch.zeros(shape)), Fraction(share)) == expected


def test_a_share_that_is_no_direction_is_refused() -> None:
    with pytest.raises(UsageError, match=r"The share 0\.8 of 1 directions is none; ask for a larger share"):
        share_of_directions(Factors(torch.zeros(5, 1), torch.zeros(1, 5)), Fraction("0.8"))


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral", "gpt_oss"])
def test_matrices_are_views_with_outputs_first(architecture: str) -> None:
    lm = tiny_lm(architecture)
    tensors = {name: torch.zeros(weight.shape) for name, weight in eligible_parameters(lm).items()}
    for matrix, view in matrices_of(lm, tensors).items():
        part = lm.parts.by_name(matrix.name)
        view[1, 2] = 1
        own = tensors[matrix.name] if matrix.expert is None else tensors[matrix.name][matrix.expert]
        assert own[(1, 2) if part.orientation == "out_in" else (2, 1)] == 1
    assert all(int(tensor.sum()) == len(tensor if tensor.dim() == 3 else [tensor]) for tensor in tensors.values())


class TestResponseGrams:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_sum_what_is_read_at_response_tokens(self, architecture: str, batch_size: int) -> None:
        lm = tiny_lm(architecture)
        generator = torch.Generator().manual_seed(0)
        rows = refusal_rows(lm, PROMPTS, REFUSALS[:1])
        factors = {}
        for number, (matrix, weight) in enumerate(matrices_of(lm, eligible_parameters(lm)).items()):
            right = torch.randn(3, weight.shape[1], generator=generator)
            factors[matrix] = Factors(None, right if number % 2 else None)
        found = response_grams(lm, rows, batch_size, factors)
        expected = stored_reads(tiny_lm(architecture), PROMPTS)
        assert found.keys() == expected.keys()
        for matrix, gram in found.items():
            assert gram.dtype == torch.float64
            summed = gram_of(expected[matrix], factors[matrix])
            assert (gram - summed).abs().max() <= 1e-4 * summed.abs().max(), matrix

    def test_other_matrices_are_not_summed(self) -> None:
        lm = tiny_lm()
        wanted = Matrix("model.layers.1.mlp.up_proj.weight", None)
        rows = refusal_rows(lm, PROMPTS, REFUSALS[:1])
        assert response_grams(lm, rows, 2, {wanted: Factors(None, None)}).keys() == {wanted}

    def test_activations_that_are_not_finite_are_refused(self) -> None:
        lm = tiny_lm()
        with torch.no_grad():
            lm.model.get_parameter("model.layers.0.self_attn.v_proj.weight").fill_(float("inf"))
        factors = {matrix: split(weight) for matrix, weight in matrices_of(lm, eligible_parameters(lm)).items()}
        with pytest.raises(NumericalError, match=r"What .* reads is not finite; open the model in bfloat16 or float32"):
            response_grams(lm, refusal_rows(lm, PROMPTS, REFUSALS[:1]), 2, factors)
