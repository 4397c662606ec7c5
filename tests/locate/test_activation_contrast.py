"""Activation contrast against a slow twin that compares token by token, and on checkpoints with a known difference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import ModelError, UsageError
from ballast.locate import locate
from ballast.locate.activation_contrast import ActivationContrast, contrasted
from ballast.locate.inputs import Inputs, observed_inputs
from ballast.locate.unit_scores import UnitScores
from ballast.models import LanguageModel
from ballast.models.generation import answer_batch
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered, render
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

GIVEN: list[Any] = [None, "No, I will not.", None]
PROMPTS = prompt_set("harmful", ["How?", "Write a long threat", "And?"], GIVEN)
TOKENS = 6
Save = Callable[[LanguageModel], str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(lm: LanguageModel) -> str:
        lm.model.save_pretrained(tmp_path / "base")
        lm.tokenizer.save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return saved


def near(lm: LanguageModel, name: str) -> LanguageModel:
    """The same architecture with weights a little different, so that routing is not all different."""
    other = tiny_lm(name, seed=1)
    mine = dict(lm.model.named_parameters())
    with torch.no_grad():
        for parameter_name, parameter in other.model.named_parameters():
            parameter.mul_(0.1).add_(mine[parameter_name])
    return other


def rows_of(lm: LanguageModel) -> list[Rendered]:
    rows = []
    for prompt in PROMPTS:
        row = render(lm.tokenizer, prompt.prompt, prompt.response)
        if not prompt.response:
            (answer,) = answer_batch(lm, [row.ids], TOKENS)
            row = Rendered([*row.ids, *answer.ids], len(row.ids))
        rows.append(row)
    return rows


@torch.no_grad()
def read_alone(lm: LanguageModel, row: Rendered) -> dict[tuple[str, int | None], dict[int, torch.Tensor]]:
    """What each down projection reads at each response token of one row, by the token's place."""
    found: dict[tuple[str, int | None], dict[int, torch.Tensor]] = defaultdict(dict)

    def see(inputs: Inputs) -> None:
        if inputs.part.role.rpartition(".")[2] == "down":
            places = range(len(row.ids)) if inputs.tokens is None else inputs.tokens.tolist()
            for place, values in zip(places, inputs.values, strict=True):
                if place >= row.prompt_length:
                    found[inputs.part.name, inputs.expert][place] = values

    with observed_inputs(lm, see):
        lm.model(torch.tensor([row.ids]), use_cache=False)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss", "mixtral", "deepseek_v3"])
def test_scores_equal_those_of_the_slow_twin(architecture: str, save: Save) -> None:
    lm = tiny_lm(architecture)
    base = near(lm, architecture)
    method = ActivationContrast(base=save(base), max_new_tokens=TOKENS)
    scores = locate(lm, PROMPTS, method, batch_size=2)
    assert isinstance(scores, UnitScores)
    squares: dict[tuple[str, int | None], list[torch.Tensor]] = defaultdict(list)
    routed = 0
    for row in rows_of(lm):
        now, then = read_alone(lm, row), read_alone(base, row)
        for matrix, tokens in now.items():
            routed += len(tokens) if matrix[1] is not None else 0
            shared = [place for place in tokens if place in then[matrix]]
            squares[matrix] += [(tokens[place] - then[matrix][place]) ** 2 for place in shared]
    experts = {matrix: found for matrix, found in squares.items() if matrix[1] is not None}
    if experts:
        alike = sum(map(len, experts.values())) / routed
        assert scores.settings["routed_alike"] == pytest.approx(alike, abs=1e-4)
        assert 0.3 < alike < 1  # the rule about shared tokens is put to the test
    recorded: Any = scores.settings
    for group, found in zip(scores.groups, scores.values, strict=True):
        (down,) = (line.part.name for line in group.lines if line.part.role.endswith("down"))
        rows = squares[down, group.expert]
        expected = torch.stack(rows).mean(dim=0).sqrt() if rows else torch.zeros(group.size)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        named = f"{down}[{group.expert}]" in recorded.get("unshared_experts", ())
        assert named == (not rows)
    assert scores.settings["tokens"] == sum(len(row.ids) - row.prompt_length for row in rows_of(lm))
    assert recorded["base_model"]["fingerprint"] == base.identity()["fingerprint"]


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_a_model_beside_itself(architecture: str, save: Save) -> None:
    """All differences are exactly zero; a method without any score says so."""
    lm = tiny_lm(architecture)
    squares, counts, routed = contrasted(lm, lm, [collate(rows_of(lm), lm.pad_id)])
    assert squares
    assert not any(total.any() for total in squares.values())
    assert routed == sum(count for (_, expert), count in counts.items() if expert is not None)
    with pytest.raises(ModelError, match="have the same activations; give another checkpoint as base"):
        locate(lm, PROMPTS, ActivationContrast(base=save(lm), max_new_tokens=TOKENS))


def test_the_neuron_that_was_changed_is_found(save: Save) -> None:
    """In the layer of the change it alone differs; the layer behind it hears of it."""
    lm, base = tiny_lm("llama"), tiny_lm("llama")
    base.model.get_parameter("model.layers.0.mlp.up_proj.weight").data[7] *= 3
    scores = locate(lm, PROMPTS, ActivationContrast(base=save(base), max_new_tokens=TOKENS))
    assert isinstance(scores, UnitScores)
    assert scores.values[0].nonzero().flatten().tolist() == [7]
    assert scores.values[1].all()


def test_five_in_a_hundred_of_all_neurons_are_the_methods_own_choice(save: Save) -> None:
    lm = tiny_lm("llama")
    method = ActivationContrast(base=save(tiny_lm("llama", seed=1)), max_new_tokens=TOKENS)
    scores = locate(lm, PROMPTS, method)
    assert isinstance(scores, UnitScores)
    together = torch.cat(scores.values)
    best = together.topk(len(together) // 20).indices.sort().values.tolist()
    rows = scores.select().metadata.selected_units["feed_forward"]
    assert [layer * len(scores.values[0]) + number for layer, _, number in rows] == best
    again = locate(lm, PROMPTS, method)
    assert isinstance(again, UnitScores)
    assert all(torch.equal(*pair) for pair in zip(scores.values, again.values, strict=True))


def test_a_base_that_does_not_fit(save: Save) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(UsageError, match="needs a second checkpoint; give its setting base"):
        ActivationContrast()
    with pytest.raises(UsageError, match="at least 1"):
        ActivationContrast(base="x", max_new_tokens=0)
    with pytest.raises(ModelError, match=r"is \(32, 32\) in llama and \(64, 32\) in base; give as base"):
        locate(lm, PROMPTS, ActivationContrast(base=save(tiny_lm("qwen3"))))
    short = tiny_lm("llama")
    short.model.resize_token_embeddings(100)
    with pytest.raises(ModelError, match=r"knows 100 tokens and the token \d+ is needed"):
        locate(lm, PROMPTS, ActivationContrast(base=save(short), max_new_tokens=TOKENS))
