"""One step of hardening: its gradient, its clipping, its learning rate."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ballast.models import LanguageModel
from ballast.prompts import Prompt, PromptSet
from ballast.tune.curriculum import Curriculum
from ballast.tune.lessons import help_lessons, refusal_lessons
from ballast.tune.objective import lesson_losses
from ballast.tune.step import train_step
from tests.tune.world import HARMLESS, REFUSALS, SETTINGS
from tests.worlds import assert_close, plain_gradients, tiny_lm

torch.set_num_threads(1)


class Recorder:
    """An optimizer that does nothing; the gradient stays where autograd puts it."""

    def __init__(self, norm: float) -> None:
        self.norm = norm
        self.calls: list[float] = []

    def gradient_norm(self) -> float:
        return self.norm

    def set_lr(self, lr: float) -> None:
        self.calls.append(lr)

    def step(self, scale: float = 1.0) -> None:
        self.calls.append(scale)


class TestStep:
    STEP = 2

    def lessons(self, lm: LanguageModel) -> Curriculum:
        """The answers are those of another model, so that there is a divergence."""
        refusals = [*REFUSALS, Prompt(id="long", prompt="bad: a longer one", response="Not me.", pair=1)]
        twin = PromptSet("twins", (Prompt(id="twin", prompt="good: a longer one", pair=1),))
        answers = help_lessons(tiny_lm(seed=2), [HARMLESS, twin], 4, None)
        return Curriculum(refusal_lessons(lm, [PromptSet("bad", tuple(refusals))], 5), answers, 0)

    @pytest.mark.parametrize("size", [1, 2, 4, 6])
    def test_gradient_is_that_of_the_whole_batch(self, size: int) -> None:
        """Mean over all refusal tokens plus the weighted mean over all answer tokens, however the rows are split."""
        lm = tiny_lm()
        lessons = self.lessons(lm)
        rows = lessons.batch(self.STEP, 3, 3)
        tokens = {kind: sum(row.tokens for row in rows if (row.teacher is None) is kind) for kind in (True, False)}
        found: dict[str, float] = {}

        def loss() -> torch.Tensor:
            losses = lesson_losses(lm, rows)
            refuse, keep = losses.refuse / tokens[True], losses.help / tokens[False]
            found.update(refuse=refuse.item(), help=keep.item(), loss=(refuse + 0.5 * keep).item())
            return refuse + 0.5 * keep

        expected = plain_gradients(lm, loss)
        assert len({row.tokens for row in rows}) > 1
        assert found["help"] > 0.01
        row = train_step(lm, Recorder(1.0), lessons, dataclasses.replace(SETTINGS, micro_batch=size), self.STEP)
        assert {key: row[key] for key in found} == pytest.approx(found, rel=1e-5)
        weights = dict(lm.model.named_parameters())
        assert_close({name: weights[name].grad for name in expected}, expected)

    @pytest.mark.parametrize(("norm", "scale"), [(0.5, 1.0), (4.0, 0.25), (0.0, 1.0)])
    def test_gradient_is_clipped(self, norm: float, scale: float) -> None:
        lm, optimizer = tiny_lm(), Recorder(norm)
        row = train_step(lm, optimizer, self.lessons(lm), SETTINGS, self.STEP)
        assert optimizer.calls == [SETTINGS.rate(self.STEP), scale]
        assert row["gradient_norm"] == norm


class TestRate:
    def test_rises_then_falls_to_a_tenth(self) -> None:
        settings = dataclasses.replace(SETTINGS, steps=100, warmup=0.05, learning_rate=1.0)
        rates = [settings.rate(step) for step in range(100)]
        assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
        assert rates[5:] == sorted(rates[5:], reverse=True)
        assert 0.1 < rates[-1] < 0.101
