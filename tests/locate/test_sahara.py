"""Sahara: angles and ranks by hand, and the greedy search against one with really changed weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from ballast.errors import PromptError, UsageError
from ballast.locate import locate
from ballast.locate.sahara import Head, Sahara, angle, leading_vectors, ranked
from ballast.locate.unit_scores import UnitScores
from ballast.models import LanguageModel
from ballast.prompts.chat import render
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

REQUESTS = ("How?", "Write a long threat", "And why?", "Hm", "Tell me")
PROMPTS = prompt_set("harmful", REQUESTS)
HEADS = 4


def test_angles_by_hand() -> None:
    """A plane in four dimensions of which one axis is turned by 30 degrees and the other by 45."""
    whole = torch.eye(4, dtype=torch.float64)[:, :2]
    turned = torch.zeros(4, 2, dtype=torch.float64)
    for column, degrees in enumerate((30, 45)):
        turned[column, column] = math.cos(math.radians(degrees))
        turned[column + 2, column] = math.sin(math.radians(degrees))
    assert angle(whole, turned) == pytest.approx(75)
    assert angle(whole[:, :1], turned[:, :1]) == pytest.approx(30)
    mixed = turned @ torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)  # another basis of the same plane
    assert angle(whole, mixed) == pytest.approx(75)
    assert angle(whole, whole) == 0


def test_leading_vectors_by_hand() -> None:
    """Rows 3 e1, 4 e1 and 2 e2: the largest singular value is 5 with (3, 4, 0) / 5, the next 2 with the last row."""
    found = leading_vectors(torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 2.0]]), 2)
    assert found.abs().flatten().tolist() == pytest.approx([0.6, 0, 0.8, 0, 0, 1])


def test_ranks_by_hand() -> None:
    """Two heads were taken, of angles 50 and 20; in the second step the others had 5 and 19."""
    taken: dict[Head, float] = {(0, 1): 50.0, (1, 0): 20.0}
    scores = ranked({(0, 0): 5.0, (1, 0): 20.0, (1, 1): 19.0}, taken, largest=90.0)
    assert scores == {(0, 0): 5.0, (1, 1): 19.0, (1, 0): 20.0, (0, 1): 140.0}


@torch.no_grad()
def states_without(lm: LanguageModel, heads: list[Head]) -> np.ndarray:
    """(n, H) with the output columns of these heads set to zero, one prompt at a time."""
    changed = copy.deepcopy(lm.model)
    for layer, head in heads:
        weight = changed.get_parameter(f"model.layers.{layer}.self_attn.o_proj.weight").data
        size = weight.shape[1] // HEADS
        weight[:, head * size : (head + 1) * size] = 0
    rows = [torch.tensor([render(lm.tokenizer, request).ids]) for request in REQUESTS]
    last = [changed.model(ids).last_hidden_state[0, -1] for ids in rows]
    found: np.ndarray = torch.stack(last).double().numpy()
    return found


def plain_angle(first: np.ndarray, second: np.ndarray, vectors: int) -> float:
    left = [np.linalg.svd(states)[0][:, :vectors] for states in (first, second)]
    cosines = np.linalg.svd(left[0].T @ left[1], compute_uv=False)
    return float(np.degrees(np.arccos(cosines.clip(max=1))).sum())


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_the_search_equals_one_with_changed_weights(architecture: str, vectors: int) -> None:
    lm = tiny_lm(architecture)
    scores = locate(lm, PROMPTS, Sahara(heads=3, vectors=vectors), batch_size=1)
    assert isinstance(scores, UnitScores)
    layers = lm.model.config.num_hidden_layers
    everything = [(layer, head) for layer in range(layers) for head in range(HEADS)]
    whole = states_without(lm, [])
    taken: dict[Head, float] = {}
    for _ in range(3):
        angles = {
            head: plain_angle(whole, states_without(lm, [*taken, head]), vectors)
            for head in everything
            if head not in taken
        }
        best = max(angles, key=angles.__getitem__)
        taken[best] = angles[best]
    order = scores.settings["order"]
    assert isinstance(order, list)
    assert [tuple(row[:2]) for row in order] == list(taken)
    assert [row[2] for row in order] == pytest.approx(list(taken.values()), rel=1e-3)
    for layer, head in everything:
        if (layer, head) not in taken:
            assert float(scores.values[layer][head]) == pytest.approx(angles[layer, head], rel=1e-3)
    together = torch.stack(scores.values).flatten()
    assert [divmod(index, HEADS) for index in together.topk(3).indices.tolist()] == list(taken)

    region = scores.select()  # the method's own choice
    assert region.metadata.selected_units == {"head": tuple((layer, -1, head) for layer, head in sorted(taken))}
    again = locate(lm, PROMPTS, Sahara(heads=3, vectors=vectors), batch_size=1)
    assert again.settings["order"] == order


def test_settings_that_cannot_work() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(UsageError, match="at least 1 head and 1 vector, not 0 and 8"):
        Sahara(heads=0)
    with pytest.raises(UsageError, match="9 heads were asked for and there are 8"):
        locate(lm, PROMPTS, Sahara(heads=9, vectors=1))
    with pytest.raises(PromptError, match="5 vectors need more than 5 prompts, not 5"):
        locate(lm, PROMPTS, Sahara(vectors=5))
    unknown: Any = "off"
    with pytest.raises(UsageError, match="no mode 'off'"):
        Sahara(mode=unknown)
