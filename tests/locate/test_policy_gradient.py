"""ESI's policy gradient: weights of samples, the rows, and the draw itself."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig

from ballast.errors import PromptError
from ballast.judges import JUDGES
from ballast.locate import Task, locate
from ballast.locate.esi import ExpectedSafetyImpact
from ballast.locate.policy_gradient import leave_one_out_weights, sampled_rows
from ballast.models.fingerprint import seed_of
from ballast.models.generation import answer_batch
from ballast.models.sigma import scale_by_sigma
from ballast.prompts.chat import render
from tests.worlds import TableJudge, assert_close, plain_gradients, plain_log_probabilities, prompt_set, tiny_lm

torch.set_num_threads(1)


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

    def test_nothing_scored_is_an_error_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task = self.task({"one": "ru", "two": "uu"}, monkeypatch)
        with pytest.raises(PromptError, match=r"judge table scored fewer than two answers to each of the 2 prompts"):
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
