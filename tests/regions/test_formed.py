"""Mappings that form their tensors, and that selecting never asks for more than it says."""

from __future__ import annotations

import pytest
import torch

from ballast.locate import locate
from ballast.regions import select_top
from ballast.regions.formed import Formed
from ballast.regions.refine import outside_of
from ballast.regions.selection import Scope
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)


def test_nothing_is_formed_but_what_is_asked_for() -> None:
    asked: list[str] = []

    def form(name: str) -> torch.Tensor:
        asked.append(name)
        return torch.tensor([ord(name)])

    formed = Formed(("b", "a"), form)
    assert list(formed) == ["b", "a"]
    assert len(formed) == 2
    assert "a" in formed
    assert "c" not in formed
    with pytest.raises(KeyError):
        formed["c"]
    assert asked == []
    assert formed["a"].tolist() == [97]
    assert formed.get("b", torch.tensor(0)).tolist() == [98]
    assert asked == ["a", "b"]


@pytest.mark.parametrize("scope", ["global", "per_layer", "per_tensor", "per_row"])
@pytest.mark.parametrize("layers", [None, [1]])
@pytest.mark.parametrize("refined", [False, True])
def test_selecting_holds_the_scores_of_two_tensors_at_most(
    scope: Scope, layers: list[int] | None, refined: bool
) -> None:
    lm = tiny_lm()
    scores = {part.name: torch.rand(part.shape) for part in lm.parts.eligible()}
    region = locate(lm, prompt_set("one", ["Hi"]), "magnitude").select(0.1)
    alive: set[int] = set()
    most = 0

    class Watched(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def form(name: str) -> torch.Tensor:
        nonlocal most
        found: torch.Tensor = scores[name].clone().as_subclass(Watched)
        alive.add(id(found))
        most = max(most, len(alive))
        return found

    lazy = Formed(scores, form)
    given = (outside_of(lazy, region), outside_of(scores, region)) if refined else (lazy, scores)
    found, expected = (select_top(one, "1/10", scope=scope, parts=lm.parts, layers=layers) for one in given)
    assert found.record == expected.record
    assert found.indices.keys() == expected.indices.keys()
    assert all(torch.equal(found.indices[name], expected.indices[name]) for name in expected.indices)
    assert 0 < most <= 2  # the one before may not be gone yet
