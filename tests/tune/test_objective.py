"""What hardening minimises, against the same sums made row by row without padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.models import LanguageModel
from ballast.prompts.chat import Rendered, render
from ballast.tune.objective import KEPT_TOKENS, Lesson, Teacher, divergence, lesson_losses, remember
from tests.worlds import REFUSALS, REQUESTS, assert_close, plain_gradients, plain_log_probabilities, tiny_lm
from tests.zoo import EOS

torch.set_num_threads(1)


def logits(seed: int, size: int, scale: float, tokens: int = 5) -> torch.Tensor:
    return scale * torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))


def teacher_of(log_probabilities: torch.Tensor, kept: int) -> Teacher:
    values, tokens = log_probabilities.topk(kept, dim=1)
    return Teacher(tokens, values)


def full_divergence(teacher: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """KL over all tokens in fp64, from log-probabilities (T, V)."""
    teacher, current = teacher.double(), current.double()
    return (teacher.exp() * (teacher - current)).sum(dim=1)


class TestDivergence:
    @given(st.integers(0, 1000), st.integers(2, KEPT_TOKENS), st.floats(0.1, 4))
    @settings(max_examples=40, deadline=None)
    def test_is_the_full_one_if_all_tokens_are_kept(self, seed: int, size: int, scale: float) -> None:
        original, current = (logits(seed + offset, size, scale).log_softmax(1) for offset in (0, 7))
        found = divergence(teacher_of(original, size), current)
        torch.testing.assert_close(found.double(), full_divergence(original, current), rtol=1e-4, atol=1e-5)

    @given(st.integers(0, 1000), st.integers(1, 30), st.floats(0.1, 6))
    @settings(max_examples=60, deadline=None)
    def test_is_a_lower_bound_if_tokens_are_merged(self, seed: int, kept: int, scale: float) -> None:
        original, current = (logits(seed + offset, 31, scale).log_softmax(1) for offset in (0, 7))
        found = divergence(teacher_of(original, kept), current).double()
        assert (found >= -5e-5).all()
        assert (found <= full_divergence(original, current) + 5e-5).all()

    def test_by_hand(self) -> None:
        """Kept 1/2 and 1/4, the rest 1/4; now 1/4, 1/4 and 1/2."""
        teacher = Teacher(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]]).log())
        current = torch.tensor([[0.25, 0.2, 0.25, 0.3]]).log()
        expected = 0.5 * math.log(2) + 0.25 * math.log(1) + 0.25 * math.log(0.5)
        assert divergence(teacher, current).tolist() == [pytest.approx(expected, abs=1e-6)]

    @pytest.mark.parametrize("kept", [1, 8, 64])
    @pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
    def test_is_zero_without_a_change(self, kept: int, scale: float) -> None:
        original = logits(0, 64, scale).log_softmax(1)
        assert divergence(teacher_of(original, kept), original).abs().max() < 1e-6

    @pytest.mark.parametrize("kept", [1, 64, 100])
    @pytest.mark.parametrize("scale", [1.0, 100.0])
    def test_has_a_finite_gradient(self, kept: int, scale: float) -> None:
        """Also where either distribution is all on one token, or all on tokens that the other did not keep."""
        original = logits(0, 100, scale).log_softmax(1)
        for now in (logits(1, 100, scale), logits(0, 100, scale), -logits(0, 100, scale)):
            now.requires_grad_()
            value = divergence(teacher_of(original, kept), now.log_softmax(1)).sum()
            value.backward()
            assert torch.isfinite(value)
            assert now.grad is not None
            assert torch.isfinite(now.grad).all()

    def test_gradient_vanishes_without_a_change(self) -> None:
        now = logits(0, 100, 2.0).requires_grad_()
        divergence(teacher_of(now.detach().log_softmax(1), 64), now.log_softmax(1)).sum().backward()
        assert now.grad is not None
        assert now.grad.abs().max() < 1e-6


def rows_of(lm: LanguageModel) -> list[Rendered]:
    return [
        render(lm.tokenizer, request, refusal) for request, refusal in zip(REQUESTS[::-1], REFUSALS[::-1], strict=True)
    ]


def lessons_of(original: LanguageModel) -> list[Lesson]:
    """Two refusals and two answers, by turns."""
    rows = rows_of(original)
    teachers = remember(original, rows)
    return [
        Lesson(str(number), row, None if number % 2 else teacher)
        for number, (row, teacher) in enumerate(zip(rows, teachers, strict=True))
    ]


def all_log_probabilities(lm: LanguageModel, row: Rendered) -> torch.Tensor:
    """(T, V) at the response tokens of one row."""
    output = lm.model(torch.tensor([row.ids]), use_cache=False).logits[0].float().log_softmax(1)
    return output[row.prompt_length - 1 : -1]


def merged_divergence(original: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    """The divergence of one token, all but the 64 most likely tokens of the original merged."""
    order = original.argsort(descending=True)
    kept, others = order[:KEPT_TOKENS], order[KEPT_TOKENS:]
    pairs = [(original[token], current[token]) for token in kept]
    pairs.append((original[others].logsumexp(0), current[others].logsumexp(0)))
    return torch.stack([before.exp() * (before - now) for before, now in pairs]).sum()


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
class TestLosses:
    def test_are_the_sums_over_rows(self, name: str) -> None:
        original, lm = tiny_lm(name), tiny_lm(name, seed=1)
        lessons = lessons_of(original)

        def refuse() -> torch.Tensor:
            rows = [lesson.rendered for lesson in lessons if lesson.teacher is None]
            return -torch.stack([plain_log_probabilities(lm.model, row).sum() for row in rows]).sum()

        def keep() -> torch.Tensor:
            rows = [lesson.rendered for lesson in lessons if lesson.teacher is not None]
            pairs = [(all_log_probabilities(original, row).detach(), all_log_probabilities(lm, row)) for row in rows]
            return torch.stack([merged_divergence(*token) for pair in pairs for token in zip(*pair, strict=True)]).sum()

        losses = lesson_losses(lm, lessons)
        torch.testing.assert_close(losses.refuse, refuse(), rtol=1e-5, atol=0)
        torch.testing.assert_close(losses.help, keep(), rtol=1e-4, atol=0)
        for field, brute_force in (("refuse", refuse), ("help", keep)):
            found = plain_gradients(lm, lambda field=field: getattr(lesson_losses(lm, lessons), field))
            assert_close(found, plain_gradients(lm, brute_force), share=5e-4)

    def test_answers_of_an_unchanged_model_cost_nothing(self, name: str) -> None:
        lm = tiny_lm(name)
        lessons = [lesson for lesson in lessons_of(lm) if lesson.teacher is not None]
        losses = lesson_losses(lm, lessons)
        assert abs(losses.help.item()) < 1e-4
        assert losses.refuse.item() == 0

    def test_prompt_tokens_are_not_learnt(self, name: str) -> None:
        """Counting the first response token to the prompt takes off the cost of that very token, and no other's."""
        lm = tiny_lm(name)
        row = rows_of(lm)[0]
        costs = -plain_log_probabilities(lm.model, row)
        for taken in range(3):
            shorter = Lesson("row", row._replace(prompt_length=row.prompt_length + taken))
            torch.testing.assert_close(lesson_losses(lm, [shorter]).refuse, costs[taken:].sum(), rtol=1e-5, atol=0)
            assert shorter.tokens == len(costs) - taken

    def test_end_of_turn_is_learnt(self, name: str) -> None:
        lm = tiny_lm(name)
        row = rows_of(lm)[0]
        assert row.ids[-1] == EOS
        whole = lesson_losses(lm, [Lesson("row", row)]).refuse
        cut = lesson_losses(lm, [Lesson("row", row._replace(ids=row.ids[:-1]))]).refuse
        torch.testing.assert_close(whole - cut, -plain_log_probabilities(lm.model, row)[-1], rtol=1e-3, atol=0)


class TestRemember:
    def test_keeps_the_most_likely_tokens(self) -> None:
        lm = tiny_lm()
        rows = rows_of(lm)
        for row, teacher in zip(rows, remember(lm, rows), strict=True):
            expected = all_log_probabilities(lm, row).detach()
            assert teacher.tokens.shape == teacher.log_probabilities.shape == (len(expected), KEPT_TOKENS)
            torch.testing.assert_close(
                teacher.log_probabilities, expected.topk(KEPT_TOKENS).values, rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                expected.gather(1, teacher.tokens), teacher.log_probabilities, rtol=1e-4, atol=1e-5
            )
