"""From an answer to the gradient of its verdict: against finite differences and one graph by autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.locate.engine import accumulate_loss
from ballast.locate.soft.guard import Guard
from ballast.locate.soft.relaxation import Kind, Relaxation, gumbel_noise
from ballast.locate.soft.soft_answers import verdict_loss
from ballast.locate.soft.soft_judge import Objective, Reading, VerdictLogits
from tests.locate.judged import SEED, World
from tests.vocabularies import save_guard

torch.set_num_threads(1)


def differences(
    function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor, places: list[tuple[int, int]]
) -> torch.Tensor:
    step = 1e-5
    found = []
    for place in places:
        change = torch.zeros_like(at)
        change[place] = step
        with torch.no_grad():
            found.append((function(at + change) - function(at - change)) / (2 * step))
    return torch.stack(found)


class TestDerivative:
    @pytest.mark.parametrize("kind", ["gumbel", "softmax"])
    @pytest.mark.parametrize("objective", ["log_odds", "log_probability", "probability", "safe_logit"])
    def test_of_the_verdict_in_every_mixture(self, guard_folder: Path, objective: Objective, kind: Kind) -> None:
        """D against central differences of F in p[t, v], for the kinds whose judge reads the mixture."""
        relaxation = Relaxation(kind, 2.0, 1, SEED)
        world = World(guard_folder, relaxation, objective)
        with torch.no_grad():
            p = relaxation.probabilities(world.logits(world.answer.rendered), "x", 0)
        d = world.bridge.pull_back(world.answer.gradients[0], world.answer.ids, world.answer.alignment)
        places = [(t, v) for t in range(len(p)) for v in (1, 7, 60, 130, 200, 259)]
        found = torch.stack([d[place] for place in places])
        # a step in p[t, v] also takes the anchor along: p is not renormalised, and D is known up to a constant
        expected = differences(world.value, p, places)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(found.abs().max()))
        assert world.findings.value == pytest.approx(float(world.value(p)), rel=1e-9)

    @pytest.mark.parametrize("kind", ["gumbel", "softmax", "straight_through", "straight_through_gumbel"])
    def test_of_the_loss_in_the_logits(self, guard_folder: Path, kind: Kind) -> None:
        """What phase C hands to the target's logits is dF/dz by autograd through the judge's input."""
        relaxation = Relaxation(kind, 2.0, 3 if "gumbel" in kind else 1, SEED)
        world = World(guard_folder, relaxation)
        z = world.logits(world.answer.rendered).detach().requires_grad_()
        total = torch.zeros_like(z)
        for draw in range(relaxation.draws):
            noise = gumbel_noise(len(z), 260, SEED, "x", draw).double() if "gumbel" in kind else torch.zeros_like(z)
            p = ((z + noise) / 2.0).softmax(1)
            if "straight" in kind:  # the value is that of the text, the gradient that of the mixture
                hard = torch.nn.functional.one_hot(world.answer.ids, 260).double()
                p = hard + p - p.detach()
            total = total + torch.autograd.grad(world.value(p), z)[0] / relaxation.draws
        kept: list[torch.Tensor] = []
        original = world.lm.model.forward

        def seen(*arguments: Any, **named: Any) -> Any:
            output = original(*arguments, **named)
            output.logits.register_hook(kept.append)
            return output

        world.lm.model.forward = seen
        verdict_loss(world.bridge, world.lm, [dataclasses.replace(world.answer, weight=0.5)]).backward()
        torch.testing.assert_close(kept[0][0], 0.5 * total, rtol=1e-9, atol=1e-12)

    def test_in_the_weights(self, guard_folder: Path) -> None:
        """Central differences of F while a weight moves; the prefix and the noise stay."""
        relaxation = Relaxation("gumbel", 1.0, 1, SEED)
        world = World(guard_folder, relaxation)
        sums = accumulate_loss(world.lm, [world.answer], partial(verdict_loss, world.bridge), fold="sum", batch_size=1)
        for name, gradient in sums.items():
            place = int(gradient.abs().argmax())
            weight = world.lm.model.get_parameter(name).data.view(-1)
            before, values = float(weight[place]), []
            for step in (1e-4, -1e-4):
                weight[place] = before + step
                with torch.no_grad():
                    logits = world.logits(world.answer.rendered)
                    values.append(float(world.value(relaxation.probabilities(logits, "x", 0))))
            weight[place] = before
            assert float(gradient.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-3), name


class TestStraightThrough:
    @pytest.mark.parametrize("kind", ["straight_through", "straight_through_gumbel"])
    def test_the_judge_reads_the_text(self, guard_folder: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []
        original = Guard.verdict

        def watched(self: Guard, embeddings: torch.Tensor, reading: Reading) -> VerdictLogits:
            seen.append(embeddings.detach())
            return original(self, embeddings, reading)

        monkeypatch.setattr(Guard, "verdict", watched)
        draws = 4 if "gumbel" in kind else 1
        world = World(guard_folder, Relaxation(kind, 0.3, draws, SEED))
        assert len(seen) == 1  # it is the same text in every draw
        assert torch.equal(seen[0], world.bridge.table[world.reading.ids])
        assert len(world.answer.gradients) == draws


class TestFindings:
    def test_of_all_draws(self, guard_folder: Path) -> None:
        """Sizes and certainties of all draws, one position after the other."""
        relaxation = Relaxation("gumbel", 0.7, 2, SEED)
        world = World(guard_folder, relaxation)
        logits = world.logits(world.answer.rendered).detach()
        largest, sizes = [], []
        for draw in range(2):
            p = relaxation.probabilities(logits, "x", draw).requires_grad_()
            (d,) = torch.autograd.grad(world.value(p), p)
            largest.append(p.detach().amax(1))
            sizes.append(relaxation.logit_gradient(p.detach(), d).abs().sum(1))
        torch.testing.assert_close(world.findings.largest, torch.cat(largest))
        torch.testing.assert_close(world.findings.sizes, torch.cat(sizes))

    def test_tokens_that_the_judge_does_not_read_are_left_out(self, other_guard: Path) -> None:
        world = World(save_guard(other_guard.parent / "fp64", dtype=torch.float64), Relaxation("softmax", 1.0, 1, 0))
        cut = world.reading._replace(spans=world.reading.spans[:2], visible=(0, 2))
        found = world.examiner.examine("x", world.rendered, world.spans, cut)
        assert not isinstance(found, str)
        last = max(position for position, (low, _) in enumerate(world.spans) if low < 2)
        assert len(found[0].ids) == last + 1
        assert len(found[1].sizes) == last + 1
