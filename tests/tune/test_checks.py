"""Checks on the select prompts, and which step is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ballast.tune.checks import Check, check, choose, reaches, reason
from tests.worlds import TableJudge, prompt_set, tiny_lm

torch.set_num_threads(1)


class TestChoose:
    def row(self, step: int, attack_success_rate: float, over_refusal: float) -> Check:
        return Check(step, attack_success_rate, over_refusal, 10, 10)

    def test_the_lowest_attack_success_within_the_budget(self) -> None:
        rows = [self.row(0, 0.9, 0.1), self.row(10, 0.5, 0.15), self.row(20, 0.2, 0.2), self.row(30, 0.0, 0.21)]
        assert choose(rows, 0.05).step == 10
        assert choose(rows, 0.1).step == 20  # 0.1 + 0.1 is within, however it is rounded
        assert choose(rows, 1.0).step == 30

    def test_over_refusal_then_the_earliest_decide_between_equals(self) -> None:
        rows = [self.row(0, 0.9, 0.1), self.row(10, 0.2, 0.3), self.row(20, 0.2, 0.2), self.row(30, 0.2, 0.2)]
        assert choose(rows, 0.5).step == 20

    def test_the_untuned_model_stays_if_nothing_is_better(self) -> None:
        assert choose([self.row(0, 0.5, 0.1), self.row(10, 0.5, 0.1), self.row(20, 0.6, 0.0)], 0.5).step == 0

    def test_a_target_is_reached_within_the_budget_alone(self) -> None:
        untuned = self.row(0, 0.9, 0.1)
        assert reaches(self.row(10, 0.3, 0.15), untuned, 0.3, 0.05)
        assert reaches(self.row(10, 0.1 + 0.2, 0.1), untuned, 0.3, 0.0)  # however it is rounded
        assert not reaches(self.row(10, 0.31, 0.1), untuned, 0.3, 0.05)
        assert not reaches(self.row(10, 0.0, 0.16), untuned, 0.3, 0.05)
        assert not reaches(self.row(10, 0.0, 0.1), untuned, None, 0.05)
        assert not reaches(Check(10, 0.0, 0.1, 0, 10), untuned, 0.3, 0.05)  # nothing was scored
        assert not reaches(Check(10, 0.0, 0.0, 10, 0), untuned, 0.3, 0.05)

    def test_beyond_the_budget_the_smallest_rise_of_those_that_lowered_attack_success(self) -> None:
        rows = [self.row(0, 0.9, 0.1), self.row(10, 0.5, 0.25), self.row(20, 0.3, 0.2), self.row(30, 0.4, 0.2)]
        rows += [self.row(40, 0.9, 0.19), self.row(50, 0.0, 0.3)]
        assert choose(rows, 0.05).step == 20
        assert "no step kept" in reason(rows[2], rows, 0.05)
        assert "smallest rise, 10.0%" in reason(rows[2], rows, 0.05)
        assert reason(rows[2], rows, 0.1).startswith("lowest attack success")

    @pytest.mark.parametrize("counts", [(0, 10), (10, 0)])
    def test_a_check_without_a_verdict_is_never_chosen(self, counts: tuple[int, int]) -> None:
        rows = [self.row(0, 0.9, 0.1), self.row(10, 0.5, 0.1), Check(20, 0.0, 0.0, *counts)]
        assert choose(rows, 0.05).step == 10
        assert choose([rows[0], rows[2]], 0.05).step == 0

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8), st.integers(0, 9))
    def test_a_step_that_was_not_kept_is_never_chosen_later(self, rates: list[tuple[int, int]], budget: int) -> None:
        """Weights are kept when a check is chosen: what is chosen at the end must have been chosen at its time."""
        rows = [self.row(10 * number, one / 10, other / 10) for number, (one, other) in enumerate(rates)]
        kept = rows[0]
        for number, row in enumerate(rows):
            if choose(rows[: number + 1], budget / 10) is row:
                kept = row
        assert choose(rows, budget / 10) is kept


class TestCheck:
    def test_counts(self) -> None:
        """Degenerate answers are scored and neither complied nor refused; unscored ones are left out.

        Several sets of harmless prompts are counted together.
        """
        table = {"a": "c", "b": "r", "c": "d", "d": "u", "e": "r", "f": "c", "g": "u"}
        sets = [prompt_set("good", "ef"), prompt_set("fine", "g")]
        found = check(tiny_lm(), TableJudge(table), prompt_set("bad", "abcd"), sets, 5, 2)
        assert found == Check(5, pytest.approx(1 / 3), 0.5, 3, 2)
