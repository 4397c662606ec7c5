"""Stage B on refusals that are planted: the factor, the way of scaling, the window and its plateau."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from ballast.locate.layers.gap_curve import Window
from ballast.locate.layers.layer_search import choose_alpha, most_refusing, way_of_scaling
from ballast.locate.layers.over_rejection import UNSCALED, Mode, OverRejection
from tests.locate.world import LetterJudge, deep_lm
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

LAYERS = 12
PROMPTS = prompt_set("benign", [f"Question {number}" for number in range(40)])
UTILITY = prompt_set("utility", ["Hi"], ["Hello"])
TOP = Window(3, 7)


@dataclass(frozen=True, eq=False)
class Planted(OverRejection):
    """Refuses the more prompts the closer the window is to `TOP`; costs what it is told to."""

    asked: list[tuple[Window, float, Mode]] = field(default_factory=list)
    loss: Callable[[float], float] = lambda _: 1.0
    factor: float = 1.1

    def verdicts(self, window: Window, alpha: float, mode: Mode) -> str:
        self.asked.append((window, alpha, mode))
        distance = abs(window.start - TOP.start) + abs(window.end - TOP.end)
        refused = 2 if window == UNSCALED or alpha < self.factor else max(0, 30 - 5 * distance)
        return "r" * refused + "d" + "c" * (39 - refused)

    def utility_loss(self, window: Window, alpha: float, mode: Mode) -> float:
        return self.loss(alpha)


def planted(loss: Callable[[float], float] = lambda _: 1.0, factor: float = 1.1) -> Planted:
    return Planted(deep_lm(LAYERS), PROMPTS, UTILITY, LetterJudge(), 1, 1, None, loss=loss, factor=factor)


class TestSearch:
    @pytest.mark.parametrize("search", ["alternate", "grid"])
    def test_the_planted_window_is_found(self, search: str) -> None:
        found = most_refusing(planted(), Window(5, 8), "output", None, search, seed=0)
        assert found.window == TOP
        assert found.alpha == 1.1
        assert (found.notes["window"], found.notes["refused"], found.notes["refused_unscaled"]) == ([3, 7], 30, 2)
        assert found.notes["degenerate"] == 1
        assert [3, 7, 30] in found.notes["windows"]
        assert [5, 7, 20] in found.notes["windows"]
        assert "warning" not in found.notes

    def test_shares_count_the_windows_on_the_plateau(self) -> None:
        """One layer off costs 5 of 40 prompts, always the same ones, which is significant for paired prompts."""
        found = most_refusing(planted(), Window(5, 8), "output", 1.2, "grid", seed=0)
        assert found.notes["plateau"] == [[3, 7]]
        assert found.shares.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]

    def test_a_wide_plateau(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spans = {Window(3, 7), Window(4, 7)}

        def verdicts(self: Planted, window: Window, alpha: float, mode: Mode) -> str:
            return ("r" if window in spans else "c") * 40

        monkeypatch.setattr(Planted, "verdicts", verdicts)
        found = most_refusing(planted(), Window(4, 7), "output", 1.2, "grid", seed=0)
        assert found.window == Window(4, 7)
        assert found.notes["plateau"] == [[3, 7], [4, 7]]
        assert found.shares.tolist() == [0, 0, 0, 0.5, 1, 1, 1, 0, 0, 0, 0, 0]

    def test_everything_is_scaled_in_the_same_way(self) -> None:
        measured = planted()
        most_refusing(measured, Window(5, 8), "residual", 1.25, "alternate", seed=0)
        assert {(alpha, mode) for window, alpha, mode in measured.asked if window != UNSCALED} == {(1.25, "residual")}

    def test_a_model_that_refuses_no_more_gets_a_warning(self) -> None:
        found = most_refusing(planted(factor=9), Window(5, 8), "output", 1.1, "alternate", seed=0)
        assert found.window == Window(5, 8)
        assert "No window raises" in found.notes["warning"]

    def test_the_reason_for_alpha_is_noted(self) -> None:
        assert most_refusing(planted(), Window(5, 8), "output", 1.2, "grid", 0).notes["alpha_why"] == "given"
        found = most_refusing(planted(factor=1.2), Window(3, 6), "output", None, "grid", 0)
        assert found.notes["alpha_used"] == 1.2
        assert "smallest" in found.notes["alpha_why"]


class TestAlpha:
    """The rate is 0.10 without scaling."""

    def chosen(self, rates: dict[float, float], losses: dict[float, float]) -> tuple[float, str]:
        rates = {1: 0.10, 1.05: 0.10, 1.1: 0.10, 1.15: 0.10, 1.2: 0.10, 1.3: 0.10, **rates}
        return choose_alpha(rates.__getitem__, {1: 2.0, **losses}.__getitem__)

    def test_the_smallest_that_moves_enough(self) -> None:
        rates = {1.05: 0.14, 1.1: 0.16, 1.15: 0.40, 1.2: 0.5, 1.3: 0.6}
        assert self.chosen(rates, {1.1: 2.1})[0] == 1.1

    def test_a_fall_is_a_move(self) -> None:
        assert self.chosen({1.3: 0.02}, {1.3: 2.0})[0] == 1.3

    def test_utility_may_rise_by_a_fifth(self) -> None:
        rates = {1.15: 0.3, 1.2: 0.4, 1.3: 0.5}
        assert self.chosen(rates, {1.15: 2.41, 1.2: 2.39, 1.3: 2.0})[0] == 1.2

    @pytest.mark.parametrize("rates", [{}, {1.3: 0.9}])
    def test_without_any_it_is_1_1_and_said(self, rates: dict[float, float]) -> None:
        alpha, why = self.chosen(rates, {1.3: 3.0})
        assert alpha == 1.1
        assert why.startswith("No factor")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_that_cancel_the_scale_are_noticed(name: str) -> None:
    lm = tiny_lm(name)
    measured = OverRejection(lm, prompt_set("benign", ["How do I kill a process?"]), UTILITY, LetterJudge(), 1, 1, None)
    layers = lm.model.config.get_text_config().num_hidden_layers
    mode, notes = way_of_scaling(measured, Window(0, layers), 1.1, "auto")
    assert mode == ("residual" if name in ("gemma2", "gemma3", "olmo2") else "output")
    assert notes["scale_invariant"] is (mode == "residual")
    assert notes["logit_change"][mode] == max(notes["logit_change"].values())


@pytest.mark.parametrize("mode", ["output", "residual"])
def test_a_mode_that_was_asked_for_is_taken(mode: Mode) -> None:
    assert way_of_scaling(planted(), TOP, 1.1, mode) == (mode, {"mode_used": mode})
