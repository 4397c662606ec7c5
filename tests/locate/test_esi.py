"""Expected Safety Impact: a computation by hand, the scale of each matrix, and both estimators of the gradient."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

import pytest
import torch

from ballast.errors import RegionError, UsageError
from ballast.locate import WeightScores, get_method, locate
from ballast.locate.esi import ExpectedSafetyImpact
from ballast.models import Part
from ballast.models.roles import Halves, Orientation
from ballast.models.sigma import scale_by_sigma
from ballast.prompts.chat import render
from ballast.regions import select_top
from tests.worlds import assert_close, plain_gradients, plain_log_probabilities, prompt_set, tiny_lm

torch.set_num_threads(1)


class TestByHand:
    """z = W2 W1 x, S = z_1 - z_2, two prompts x."""

    W1 = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    W2 = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    PARTS = (
        Part("W1", 0, "up", (2, 2), "out_in", None, True, ""),
        Part("W2", 0, "down", (2, 2), "out_in", None, True, ""),
    )

    def gradients(self, x: tuple[int, int]) -> list[torch.Tensor]:
        weights = [self.W1.clone().requires_grad_(), self.W2.clone().requires_grad_()]
        z = weights[1] @ weights[0] @ torch.tensor(x, dtype=torch.float32)
        return list(torch.autograd.grad(z[0] - z[1], weights))

    def scaled(self, gradients: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        for part, weight, values, sigma in zip(
            self.PARTS, (self.W1, self.W2), gradients, (0.816497, 0.957427), strict=True
        ):
            assert scale_by_sigma(part, weight, values) == [pytest.approx(sigma, abs=1e-6)]
        return {part.name: values for part, values in zip(self.PARTS, gradients, strict=True)}

    def test_gradients(self) -> None:
        assert [value.tolist() for value in self.gradients((1, 1))] == [[[2, 2], [-1, -1]], [[3, 1], [-3, -1]]]
        assert [value.tolist() for value in self.gradients((1, -1))] == [[[2, -2], [-1, 1]], [[-1, -1], [1, 1]]]

    def test_absolute_of_mean(self) -> None:
        pairs = zip(self.gradients((1, 1)), self.gradients((1, -1)), strict=True)
        scores = self.scaled([((first + second) / 2).abs() for first, second in pairs])
        torch.testing.assert_close(scores["W1"], torch.tensor([[1.632993, 0], [0.816497, 0]]), rtol=0, atol=1e-6)
        torch.testing.assert_close(scores["W2"], torch.tensor([[0.957427, 0], [0.957427, 0]]), rtol=0, atol=1e-6)
        found = select_top(scores, count=2, parts=self.PARTS)
        assert {name: index.tolist() for name, index in found.indices.items()} == {"W1": [0], "W2": [0]}
        assert found.record.ties_left == 1
        with pytest.raises(RegionError):
            select_top(scores, count=5, parts=self.PARTS)

    def test_mean_of_absolutes(self) -> None:
        pairs = zip(self.gradients((1, 1)), self.gradients((1, -1)), strict=True)
        scores = self.scaled([(first.abs() + second.abs()) / 2 for first, second in pairs])
        expected = {"W1": [[1.632993, 1.632993], [0.816497, 0.816497]], "W2": [[1.914854, 0.957427]] * 2}
        for name, values in expected.items():
            torch.testing.assert_close(scores[name], torch.tensor(values), rtol=0, atol=1e-6)
        found = select_top(scores, count=2, parts=self.PARTS)
        assert {name: index.tolist() for name, index in found.indices.items()} == {"W2": [0, 2]}


def entries_of_matrices(part: Part) -> Iterator[list[tuple[int, ...]]]:
    """The entries of each weight matrix of a parameter, one by one."""
    experts = range(part.shape[0]) if part.expert_dim == 0 else [None]
    rows, columns = part.shape[-2:]
    for expert in experts:
        groups: dict[object, list[tuple[int, ...]]] = {}
        for row, column in itertools.product(range(rows), range(columns)):
            neuron, neurons = (row, rows) if part.orientation == "out_in" else (column, columns)
            half = {None: 0, "contiguous": 2 * neuron // neurons, "interleaved": neuron % 2}[part.halves]
            entry = (row, column) if expert is None else (expert, row, column)
            groups.setdefault(0 if expert is None else half, []).append(entry)
        yield from (groups[half] for half in sorted(groups, key=str))


class TestSigma:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("halves", [None, "contiguous", "interleaved"])
    @pytest.mark.parametrize("orientation", ["out_in", "in_out"])
    @pytest.mark.parametrize("experts", [None, 3])
    def test_against_brute_force(
        self, experts: int | None, orientation: Orientation, halves: Halves | None, dtype: torch.dtype
    ) -> None:
        shape = (6, 5) if orientation == "out_in" else (5, 6)
        shape = shape if experts is None else (experts, *shape)
        part = Part("w", 0, "gate_up", shape, orientation, None if experts is None else 0, True, "", halves)
        generator = torch.Generator().manual_seed(3)
        weight = (3 + torch.rand(shape, generator=generator) * torch.rand(shape, generator=generator)).to(dtype)
        values = torch.rand(shape, generator=generator)
        expected, deviations = values.clone(), []
        for entries in entries_of_matrices(part):
            deviations.append(statistics.stdev(float(weight[entry]) for entry in entries))
            for entry in entries:
                expected[entry] *= deviations[-1]
        found = scale_by_sigma(part, weight, values)
        assert len(found) == (1 if experts is None else experts * (1 if halves is None else 2))
        assert found == pytest.approx(deviations, rel=1e-6)
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize(
        ("name", "halves"), [("qwen3_moe", "contiguous"), ("mixtral", "contiguous"), ("gpt_oss", "interleaved")]
    )
    def test_experts_of_real_architectures(self, name: str, halves: str) -> None:
        lm = tiny_lm(name)
        stacks = [part for part in lm.parts.eligible() if part.expert_dim is not None]
        assert {part.halves for part in stacks} == {halves, None}
        weights = dict(lm.model.named_parameters())
        for part in stacks:
            weight = weights[part.name].detach()
            expected = [
                statistics.stdev(float(weight[entry]) for entry in entries) for entries in entries_of_matrices(part)
            ]
            assert len(expected) == part.shape[0] * (2 if part.halves else 1)
            assert scale_by_sigma(part, weight, torch.ones(part.shape)) == pytest.approx(expected, rel=1e-6)

    def test_wider_scopes_pool_halves_and_experts(self) -> None:
        weight = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(3))
        part = Part("w", 0, "experts.gate_up", (3, 6, 5), "out_in", 0, True, "", "contiguous")
        per_expert = [statistics.stdev(expert.flatten().tolist()) for expert in weight]
        assert scale_by_sigma(part, weight, torch.ones(3, 6, 5), "slice") == pytest.approx(per_expert, rel=1e-6)
        values = torch.ones(3, 6, 5)
        [whole] = scale_by_sigma(part, weight, values, "tensor")
        assert whole == pytest.approx(statistics.stdev(weight.flatten().tolist()), rel=1e-6)
        assert values.unique().tolist() == [pytest.approx(whole)]

    def test_the_setting_is_the_scope(self) -> None:
        lm, prompts = tiny_lm("qwen3_moe"), prompt_set("bad", ["Hi", "Ho"], ["No.", "Never."])
        gradients, found = (locate(lm, prompts, get_method("gradient")), locate(lm, prompts, sigma_scope="tensor"))
        assert isinstance(gradients, WeightScores)
        assert isinstance(found, WeightScores)
        weights = dict(lm.model.named_parameters())
        assert_close(found.values, {name: value * weights[name].std() for name, value in gradients.values.items()})
        with pytest.raises(UsageError, match="no scope of sigma 'expert'; use matrix, slice, tensor"):
            get_method("esi", sigma_scope="expert")

    def test_a_matrix_with_one_entry_has_none(self) -> None:
        values = torch.ones(2, 1, 1)
        part = Part("w", 0, "experts.up", (2, 1, 1), "out_in", 0, True, "")
        assert scale_by_sigma(part, torch.ones(2, 1, 1), values) == [0.0, 0.0]
        assert values.count_nonzero() == 0

    def test_large_mean_costs_no_precision(self) -> None:
        weight = 1000 + torch.arange(4096.0).reshape(64, 64) / 4096
        part = Part("w", 0, "up", (64, 64), "out_in", None, True, "")
        expected = statistics.stdev(weight.flatten().tolist())
        assert scale_by_sigma(part, weight, torch.ones(64, 64)) == [pytest.approx(expected, rel=1e-6)]


class TestReferenceAnswer:
    @pytest.mark.parametrize("name", ["qwen2", "gpt2", "gpt_oss"])
    def test_against_brute_force(self, name: str) -> None:
        """|sigma * gradient of the mean over prompts of the mean over refusals of the mean log-probability|."""
        lm = tiny_lm(name)
        requests, wordings = ["Hello", "How are you"], ("No.", "I will not.")
        prompts = prompt_set("own", [*requests, "Why"], [None, None, "I say no"])
        scores = locate(lm, prompts, ExpectedSafetyImpact(refusals=wordings), batch_size=2)

        def safety() -> torch.Tensor:
            def of(request: str, refusal: str) -> torch.Tensor:
                return plain_log_probabilities(lm.model, render(lm.tokenizer, request, refusal)).mean()

            means = [torch.stack([of(request, refusal) for refusal in wordings]).mean() for request in requests]
            return torch.stack([*means, of("Why", "I say no")]).mean()

        expected = {key: value.abs() for key, value in plain_gradients(lm, safety).items()}
        weights = dict(lm.model.named_parameters())
        for key, value in expected.items():
            scale_by_sigma(lm.parts.by_name(key), weights[key], value)
        assert_close(scores.values, expected, share=5e-4)
        assert scores.settings["rows"] == 5
        assert scores.settings["prompts_used"] == 3

    def test_settings_that_cannot_work(self) -> None:
        with pytest.raises(UsageError, match="no ESI estimator 'judge'"):
            get_method("esi", estimator="judge")
        with pytest.raises(UsageError, match="at least 2 samples"):
            get_method("esi", samples=1)
