"""Gradients that point against safety lose that part, and only that part."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from ballast.models import LanguageModel, open_model
from ballast.models.fingerprint import fingerprints
from ballast.prompts.chat import Rendered, render
from ballast.tune import finetune
from ballast.tune.surgery import GradientSurgery, project, refusal_gradient
from tests.tune.finetune_world import SETTINGS, TASK
from tests.worlds import REFUSALS, REQUESTS, plain_log_probabilities, tiny_lm

torch.set_num_threads(1)


def with_gradients(*rows: list[float]) -> list[Parameter]:
    parameters = [Parameter(torch.zeros(len(row))) for row in rows]
    for parameter, row in zip(parameters, rows, strict=True):
        parameter.grad = torch.tensor(row)
    return parameters


class TestProjection:
    def test_by_hand(self) -> None:
        """<g, s> = 3 - 8 - 1 = -6, <s, s> = 1 + 4 + 1 = 6: g + s is left, over both tensors as one vector."""
        parameters = with_gradients([3.0, 4.0], [1.0])
        assert project(parameters, [torch.tensor([1.0, -2.0]), torch.tensor([-1.0])])
        assert [value.grad.tolist() for value in parameters if value.grad is not None] == [[4.0, 2.0], [0.0]]

    @pytest.mark.parametrize("other", [[1.0, 1.0], [-2.0, 1.0], [0.0, 0.0]])
    def test_what_does_not_conflict_is_left(self, other: list[float]) -> None:
        (parameter,) = with_gradients([1.0, 2.0])
        assert not project([parameter], [torch.tensor(other)])
        assert parameter.grad is not None
        assert parameter.grad.tolist() == [1.0, 2.0]

    def test_on_a_quadratic(self) -> None:
        """Task |w - (1, 0)|**2 / 2 and safety |w - (-1, 2)|**2 / 2 at w = 0: gradients (-1, 0) and (1, -2).

        Projected: (-1, 0) + (1, -2) / 5 = (-0.8, -0.4). Along it safety does not change to first order, the task falls.
        """
        w = Parameter(torch.zeros(2))
        w.grad = w.detach() - torch.tensor([1.0, 0.0])
        safety = w.detach() - torch.tensor([-1.0, 2.0])
        assert project([w], [safety])
        torch.testing.assert_close(w.grad, torch.tensor([-0.8, -0.4]))
        assert float(w.grad @ safety) == pytest.approx(0, abs=1e-6)
        assert float(w.grad @ torch.tensor([-1.0, 0.0])) > 0


def refusals(lm: LanguageModel) -> list[Rendered]:
    return [render(lm.tokenizer, *pair) for pair in zip(REQUESTS, REFUSALS, strict=True)]


def test_the_gradient_of_refusals_is_that_of_their_mean_log_likelihood() -> None:
    lm = tiny_lm()
    lm.model.requires_grad_(True)
    parameters = list(lm.model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    found = refusal_gradient(lm.model, refusals(lm), lm.pad_id, parameters)
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    expected = -torch.cat([plain_log_probabilities(lm.model, row) for row in refusals(lm)]).mean()
    for mine, theirs in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_projected_step_does_not_make_refusals_less_likely() -> None:
    """The task is its own and the opposite of refusing: without surgery a small step lowers S, with it not."""
    lm = tiny_lm(dtype=torch.float64)
    lm.model.requires_grad_(True)
    rows, task = refusals(lm), render(lm.tokenizer, *TASK[0].model_dump(include={"prompt", "response"}).values())

    def score() -> torch.Tensor:
        return torch.cat([plain_log_probabilities(lm.model, row) for row in rows]).mean()

    def score_behind(step: float) -> float:
        stepped = copy.deepcopy(lm.model)
        with torch.no_grad():
            for after, now in zip(stepped.parameters(), parameters, strict=True):
                assert now.grad is not None
                after -= step * now.grad
        return float(torch.cat([plain_log_probabilities(stepped, row) for row in rows]).mean().detach())

    parameters = list(lm.model.parameters())
    loss = score() - plain_log_probabilities(lm.model, task).mean()
    changes = []
    for surgery in (False, True):
        for value, gradient in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
            value.grad = gradient
        if surgery:
            assert project(parameters, refusal_gradient(lm.model, rows, lm.pad_id, parameters))
        changes.append((score_behind(3e-4) - score_behind(-3e-4)) / 2)  # the curvature cancels
    assert changes[0] < -1e-4
    assert abs(changes[1]) < 0.05 * abs(changes[0])


def test_every_second_step_and_the_same_after_an_interruption() -> None:
    lm = tiny_lm()
    lm.model.requires_grad_(True)
    seen = []

    def spied(_: Any, batch: list[Rendered], *__: Any) -> list[torch.Tensor]:
        seen.append([refusals(lm).index(row) for row in batch])
        return [torch.zeros_like(value) for value in lm.model.parameters()]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ballast.tune.surgery.refusal_gradient", spied)
        for value in lm.model.parameters():
            value.grad = torch.zeros_like(value)
        for steps in (range(6), range(3, 6)):
            spy: Any = GradientSurgery(refusals(lm), lm.pad_id, rows=2, every=2)
            for step in steps:
                spy.on_pre_optimizer_step(None, Step(step), None, model=lm.model)
    assert len(seen) == 4
    assert sorted(seen[0] + seen[1]) == [0, 1, 2, 3]
    assert seen[3] == seen[2]


@dataclasses.dataclass
class Step:
    global_step: int


def test_fine_tuning_with_it_learns_and_is_another_training(tmp_path: Path) -> None:
    lm = tiny_lm()
    settings = dataclasses.replace(SETTINGS, max_length=600)
    found = []
    for every in (0, 1, 1):
        chosen = dataclasses.replace(settings, surgery_every=every)
        out = finetune(lm, TASK, protect=None, out=tmp_path / str(len(found)), settings=chosen)
        found.append(fingerprints(open_model(out).model))
    assert found[1] == found[2] != found[0]
