"""Expected Safety Impact: a computation by hand, the scale of each matrix, and both estimators of the gradient."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig

from ballast.errors import PromptError, RegionError, UsageError
from ballast.judges import JUDGES
from ballast.locate import Task, get_method, locate
from ballast.locate.esi import ExpectedSafetyImpact
from ballast.locate.policy_gradient import leave_one_out_weights, sampled_rows
from ballast.locate.sigma import scale_by_sigma
from ballast.models import Part
from ballast.models.fingerprint import seed_of
from ballast.models.generation import answer_batch
from ballast.models.roles import Halves, Orientation
from ballast.prompts.chat import render
from ballast.regions import select_top
from tests.worlds import TableJudge, assert_close, plain_gradients, plain_log_probabilities, prompt_set, tiny_lm

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


class TestLeaveOneOut:
    @pytest.mark.parametrize("m", [2, 3])
    def test_is_unbiased(self, m: int) -> None:
        """Vocabulary 3, length 2: the estimator summed over all m-tuples of answers is the enumerated gradient."""
        generator = torch.Generator().manual_seed(m)
        first = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
        second = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        verdicts = torch.rand(9, generator=generator, dtype=torch.float64)
        log_p = (first.log_softmax(0).unsqueeze(1) + second.log_softmax(1)).flatten()  # (9,) all answers
        expected = torch.autograd.grad((log_p.exp() * verdicts).sum(), (first, second), retain_graph=True)
        gradients = [torch.autograd.grad(value, (first, second), retain_graph=True) for value in log_p]
        p = log_p.exp().tolist()
        total = [torch.zeros_like(first), torch.zeros_like(second)]
        for answers in itertools.product(range(9), repeat=m):
            probability = float(np.prod([p[answer] for answer in answers]))
            weights = leave_one_out_weights([float(verdicts[answer]) for answer in answers])
            for answer, weight in zip(answers, weights, strict=True):
                for value, gradient in zip(total, gradients[answer], strict=True):
                    value += probability * weight * gradient
        for value, wanted in zip(total, expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12)

    def test_baseline_is_the_mean_of_the_others(self) -> None:
        rewards = [1.0, 0.0, 0.25, 1.0]
        expected = [(r - (sum(rewards) - r) / 3) / 4 for r in rewards]
        assert leave_one_out_weights(rewards) == pytest.approx(expected, abs=1e-15)

    @pytest.mark.parametrize("m", [2, 3, 7])
    @pytest.mark.parametrize("reward", [0.0, 1.0])
    def test_equal_verdicts_weigh_nothing(self, m: int, reward: float) -> None:
        assert leave_one_out_weights([reward] * m) == [0.0] * m


class TestSampledRows:
    SEED = 5

    def task(self, table: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Task:
        monkeypatch.setitem(JUDGES, "table", lambda: TableJudge(table))
        return Task(tiny_lm(), prompt_set("p", list(table)), seed=self.SEED)

    def test_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Unscored and degenerate answers leave their group, groups below two leave the mean, equal ones count as 0."""
        task = self.task({"one": "rccu", "two": "rrrr", "three": "rudd", "four": "ccrr"}, monkeypatch)
        rows, notes = sampled_rows(task, 4, 6, "table")
        assert [(row.id, row.weight) for row in rows] == [
            ("p-0#0", pytest.approx((2 / 3) / 2 / 3)),
            ("p-0#1", pytest.approx((-1 / 3) / 2 / 3)),
            ("p-0#2", pytest.approx((-1 / 3) / 2 / 3)),
            ("p-3#0", pytest.approx(-0.5 / 3 / 3)),
            ("p-3#1", pytest.approx(-0.5 / 3 / 3)),
            ("p-3#2", pytest.approx(0.5 / 3 / 3)),
            ("p-3#3", pytest.approx(0.5 / 3 / 3)),
        ]
        assert notes == {
            "prompts_used": 3,
            "prompts_dropped": 1,
            "rows": 7,
            "judge": "table",
            "equal_verdict_share": 0.3333,
        }

    def test_rows_are_the_sampled_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task = self.task({"one": "rc"}, monkeypatch)
        rows, _ = sampled_rows(task, 3, 6, "table")
        prompt = render(task.lm.tokenizer, "one").ids
        answers = answer_batch(task.lm, [prompt] * 3, 6, seed_of(self.SEED, "p-0"))
        assert [row.rendered.ids for row in rows] == [[*prompt, *answer.ids] for answer in answers]
        assert {row.rendered.prompt_length for row in rows} == {len(prompt)}
        assert len({tuple(answer.ids) for answer in answers}) == 3  # drawn, not greedy

    def test_equal_verdicts_everywhere_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task = self.task({"one": "r", "two": "c", "three": "u"}, monkeypatch)
        with pytest.raises(PromptError, match=r"each of the 3 prompts got the same verdict.*use more samples"):
            sampled_rows(task, 2, 2, "table")

    def test_warns_when_most_prompts_tell_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        table = {str(number): "r" for number in range(5)}
        _, notes = sampled_rows(self.task({**table, "differs": "rc"}, monkeypatch), 2, 2, "table")
        assert notes["warning"].startswith("83% of the prompts")

    def test_a_prompt_without_room_for_its_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task = self.task({"x" * 500: "rc"}, monkeypatch)
        with pytest.raises(PromptError, match=r"'p-0' takes .* tokens"):
            sampled_rows(task, 2, 8, "table")

    def test_scores_are_the_scaled_policy_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task = self.task({"one": "rcc", "two": "crc"}, monkeypatch)
        lm = task.lm
        rows, _ = sampled_rows(task, 3, 6, "table")
        expected = plain_gradients(
            lm, lambda: sum(row.weight * plain_log_probabilities(lm.model, row.rendered).sum() for row in rows)
        )
        weights = dict(lm.model.named_parameters())
        for name, value in expected.items():
            scale_by_sigma(lm.parts.by_name(name), weights[name], value.abs_())
        method = ExpectedSafetyImpact(estimator="policy_gradient", samples=3, max_new_tokens=6, judge="table")
        assert_close(locate(lm, task.prompts, method, seed=self.SEED).values, expected, share=1e-3)


class TestSampling:
    DRAWS = 4000

    @pytest.mark.parametrize("own", [{}, {"top_k": 3, "top_p": 0.3, "temperature": 0.5, "min_p": 0.2}], ids=str)
    def test_is_exactly_from_the_model(self, own: dict[str, float]) -> None:
        """First tokens of many answers against the softmax, whatever the checkpoint asks of decoding."""
        lm = tiny_lm()
        asked = lm.model.generation_config = GenerationConfig(do_sample=True, repetition_penalty=1.5, **own)
        prompt = render(lm.tokenizer, "Hi").ids
        with torch.no_grad():
            p = lm.model(torch.tensor([prompt])).logits[0, -1].double().softmax(0).numpy()
        counts = Counter(answer.ids[0] for answer in answer_batch(lm, [prompt] * self.DRAWS, 1, sample_seed=1))
        order = np.argsort(-p)
        group = np.minimum(np.cumsum(p[order]) * 40, 39).astype(int)  # about 40 groups of equal probability
        observed = np.bincount(group, [counts[int(token)] for token in order], 40)
        expected = np.bincount(group, p[order], 40) * self.DRAWS
        kept = expected > 0
        assert kept.sum() > 20
        assert chisquare(observed[kept], expected[kept] / expected[kept].sum() * self.DRAWS).pvalue > 1e-4
        assert lm.model.generation_config is asked
