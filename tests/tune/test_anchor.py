"""Weights that are pulled back to where they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ballast.errors import RegionError, UsageError
from ballast.locate import locate
from ballast.locate.scores import WeightScores
from ballast.models import open_model
from ballast.models.fingerprint import fingerprints, tensor_fingerprint
from ballast.tune import Anchor, finetune
from ballast.tune.finetune_log import Log
from tests.tune.finetune_world import HARMFUL, SETTINGS, TASK, Stop, region_of, stopping_at
from tests.worlds import tiny_lm

torch.set_num_threads(1)


def test_by_hand() -> None:
    """weight 2, F = (0.5, 3): (4, 6) that moved by (1, -2) from (3, 8) gets 2 * (0.5 * 1, 3 * -2) = (1, -12)."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 3.0], [8.0, 2.0]]))
    known = {"weight": tensor_fingerprint(model.weight)}
    anchor = Anchor({"weight": torch.tensor([1, 2])}, {"weight": torch.tensor([0.5, 3.0])}, known, 2.0)
    nothing: Any = None
    anchor.on_init_end(nothing, nothing, nothing, model=model)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[7.0, 4.0], [6.0, 7.0]]))
    model.weight.grad = torch.tensor([[10.0, 10.0], [10.0, 10.0]])
    anchor.on_pre_optimizer_step(nothing, nothing, nothing, model=model)
    assert model.weight.grad.tolist() == [[10.0, 11.0], [-2.0, 10.0]]


def test_importance_is_the_score_over_the_mean_of_those_above_zero() -> None:
    lm = tiny_lm()
    scores = locate(lm, HARMFUL, "gradient")
    assert isinstance(scores, WeightScores)
    anchor = Anchor.of_scores(scores, 1.0)
    found = torch.cat(list(anchor.importance.values())).double()
    assert float(found.mean()) == pytest.approx(1)
    every = torch.cat([values.flatten() for values in scores.values.values()])
    above = every[every > 0]
    torch.testing.assert_close(found.float(), above / above.mean(), rtol=1e-5, atol=0)
    empty = dataclasses.replace(scores, values={name: 0 * values for name, values in scores.values.items()})
    with pytest.raises(RegionError, match="No weight has a score above zero"):
        Anchor.of_scores(empty, 1.0)


def test_the_stronger_the_closer(tmp_path: Path) -> None:
    lm = tiny_lm()
    region, distances = region_of(lm), []
    for number, weight in enumerate((None, 1.0, 1000.0)):
        anchor = Anchor.of_region(region, weight) if weight else None
        settings = dataclasses.replace(SETTINGS, weight_decay=0.0, steps=40)
        out = finetune(lm, TASK, protect=None, anchor=anchor, out=tmp_path / str(number), settings=settings)
        tuned = dict(open_model(out).model.named_parameters())
        moved = [
            (tuned[name].detach() - lm.weight(name)).flatten()[index.long()] for name, index in region.indices.items()
        ]
        distances.append(float(torch.cat(moved).norm()))
    assert distances[2] < 0.5 * distances[0]
    assert distances[2] < distances[1] < distances[0]


def test_continues_with_the_values_of_the_first_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    region = region_of(lm)

    def run(folder: str) -> dict[str, str]:
        anchor = Anchor.of_region(region, 100.0)
        out = finetune(lm, TASK, protect=None, anchor=anchor, out=tmp_path / folder, settings=SETTINGS)
        return fingerprints(open_model(out).model)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "on_log", stopping_at(7))
        with pytest.raises(Stop):
            run("killed")
    assert run("killed") == run("whole")


def test_bad_input(tmp_path: Path) -> None:
    region = region_of(tiny_lm())
    with pytest.raises(UsageError, match="must be above 0"):
        Anchor.of_region(region, 0.0)
    anchor = Anchor.of_region(region, 1.0)
    with pytest.raises(RegionError, match="holds other values than those that were located on"):
        finetune(tiny_lm(seed=1), TASK, protect=None, anchor=anchor, out=tmp_path, settings=SETTINGS)
