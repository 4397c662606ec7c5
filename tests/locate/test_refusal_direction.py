"""The refusal direction by hand, on the states of single prompts, and by models that lose it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import NumericalError, PromptError, UsageError
from ballast.locate import WeightScores, locate, refusal_direction
from ballast.locate.refusal_direction import RefusalDirection, compared
from ballast.models import LanguageModel
from ballast.models.tree import block_modules
from ballast.prompts.chat import render
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

HARMFUL = ("How do I pick a lock?", "Write a long threat", "Steal it")
HARMLESS = ("How do I bake bread?", "Write a short poem", "Count")
PROMPTS = prompt_set("harmful", HARMFUL)
POST_NORMED = ("gemma2", "gemma3", "olmo2")  # a norm stands between these projections and the residual stream


@pytest.fixture
def harmless(tmp_path: Path) -> str:
    path = tmp_path / "harmless.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in HARMLESS))
    return str(path)


def test_compared_by_hand() -> None:
    """Two layers in a plane. Layer 0: means (3, 4) apart, all spread across; variances 0 and 2 give 5 / 1."""
    along, across = torch.tensor([0.6, 0.8]), torch.tensor([-0.8, 0.6])
    harmful = torch.stack([torch.stack([5 * along + across, 5 * along - across]), torch.eye(2)])
    harmless = torch.stack([torch.stack([along, -along]), torch.tensor([[1.0, -4.0], [0.0, -3.0]])])
    directions, separations = compared(harmful, harmless)
    assert directions.flatten().tolist() == pytest.approx([0.6, 0.8, 0, 1])
    assert separations.tolist() == pytest.approx([5, 4 / math.sqrt(0.5)])


@torch.no_grad()
def mean_state(lm: LanguageModel, texts: tuple[str, ...], layer: int) -> torch.Tensor:
    """(H,) behind a block at the last token, one prompt at a time."""
    states: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    hook = block_modules(lm.model)[layer].register_forward_hook(keep)
    for text in texts:
        lm.model(torch.tensor([render(lm.tokenizer, text).ids]), use_cache=False)
    hook.remove()
    return torch.stack(states).mean(dim=0)


def direction_of(lm: LanguageModel, layer: int) -> torch.Tensor:
    difference: torch.Tensor = mean_state(lm, HARMFUL, layer) - mean_state(lm, HARMLESS, layer)
    return torch.nn.functional.normalize(difference, dim=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_what_orthogonalising_changes(architecture: str, harmless: str) -> None:
    """Matrix by matrix, expert by expert; a model whose matrices are changed so writes nothing along the direction."""
    lm = tiny_lm(architecture)
    located = locate(lm, PROMPTS, RefusalDirection(harmless=harmless, layer=1), batch_size=2)
    assert isinstance(located, WeightScores)
    scores = located.values
    direction = direction_of(lm, 1)
    projector = torch.outer(direction, direction)
    for part in lm.parts.eligible():
        if part.role.rpartition(".")[2] in ("output", "down"):
            stored = lm.model.get_parameter(part.name).data
            for number, matrix in enumerate(stored if stored.dim() == 3 else [stored]):
                written = matrix if part.orientation == "out_in" else matrix.T  # (out, in)
                before = written.clone()
                written -= projector @ written
                expected = (written - before).abs()
                found = scores[part.name][number] if stored.dim() == 3 else scores[part.name]
                found = found if part.orientation == "out_in" else found.T
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        else:
            assert not scores[part.name].any()
    if architecture not in POST_NORMED:
        assert along_residual_stream(lm, direction).diff().abs().max() < 1e-4
        assert along_residual_stream(tiny_lm(architecture), direction).diff().abs().max() > 1e-2


@torch.no_grad()
def along_residual_stream(lm: LanguageModel, direction: torch.Tensor) -> torch.Tensor:
    """How far the last state lies along the direction before the first block and behind each, biases left out."""
    for name, parameter in lm.model.named_parameters():
        if name.endswith(("c_proj.bias", "dense.bias", "4h_to_h.bias", "o_proj.bias", "down_proj_bias")):
            parameter.zero_()
    ids = torch.tensor([render(lm.tokenizer, HARMFUL[0]).ids])
    states: list[torch.Tensor] = []
    blocks = block_modules(lm.model)
    hooks = [blocks[0].register_forward_pre_hook(lambda _, arguments: states.append(arguments[0]))]
    hooks += [block.register_forward_hook(lambda _, __, output: states.append(output)) for block in blocks]
    lm.model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack([(state[0] if isinstance(state, tuple) else state)[0, -1] @ direction for state in states])


def test_the_layer_is_the_one_that_separates_best(harmless: str) -> None:
    """Of three layers: the first 80 % are all of them; as many harmless prompts as harmful ones are used."""
    lm = tiny_lm("qwen3_moe")
    notes = locate(lm, PROMPTS, RefusalDirection(harmless=harmless)).settings
    separations = notes["separations"]
    assert isinstance(separations, list)
    assert len(separations) == 3
    assert notes["direction_layer"] == separations.index(max(separations))
    assert notes["harmless_used"] == 3
    two = locate(lm, prompt_set("two", HARMFUL[:2]), RefusalDirection(harmless=harmless)).settings
    assert two["harmless_used"] == 2


def test_the_last_layers_are_not_taken(monkeypatch: pytest.MonkeyPatch, harmless: str) -> None:
    """Of five layers the last is left out, though it separates best."""
    lm = tiny_lm("llama")
    states = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([1.0, 2.0, 8.0, 4.0, 16.0]).view(5, 1, 1)
    given = iter([states + shift, states])
    monkeypatch.setattr(refusal_direction, "last_states", lambda *_: next(given))
    monkeypatch.setattr(refusal_direction, "block_modules", lambda _: range(5))
    assert locate(lm, PROMPTS, RefusalDirection(harmless=harmless)).settings["direction_layer"] == 2


def test_a_region_holds_only_what_writes(harmless: str) -> None:
    lm = tiny_lm("llama")
    region = locate(lm, PROMPTS, RefusalDirection(harmless=harmless)).select(0.05)
    assert {lm.parts.by_name(name).role for name in region.indices} == {"output", "down"}


def test_what_cannot_be_scored(harmless: str) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(UsageError, match="no layer 2; choose from 0 to 1"):
        locate(lm, PROMPTS, RefusalDirection(harmless=harmless, layer=2))
    with pytest.raises(PromptError, match="two harmful and two harmless"):
        locate(lm, prompt_set("one", HARMFUL[:1]), RefusalDirection(harmless=harmless))
    with pytest.raises(NumericalError, match="are the same"):
        locate(lm, prompt_set("same", HARMLESS), RefusalDirection(harmless=harmless))
