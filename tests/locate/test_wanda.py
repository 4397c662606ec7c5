"""Wanda against a slow twin that runs one row at a time, and what experts stored as one tensor are seen to read."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from ballast.errors import ModelError, UsageError
from ballast.locate import locate
from ballast.locate.inputs import Inputs, observed_inputs
from ballast.locate.references import refusal_rows
from ballast.locate.wanda import Wanda
from ballast.models import LanguageModel
from tests.locate.reads import EagerReads
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?", "Write a long threat", "And?"], [None, "No, I will not.", "Never."])
MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss", "olmoe", "deepseek_v3")


def twin(
    lm: LanguageModel,
    name: str,
    positions: Literal["response", "predicting"],
    aggregation: Literal["tokens", "samples"],
) -> torch.Tensor:
    """Norm per input (in,) of one projection: every row alone, without padding."""
    read: list[torch.Tensor] = []
    module = lm.model.get_submodule(name.removesuffix(".weight"))
    hook = module.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0][0]))
    rows = refusal_rows(lm, PROMPTS, Wanda.refusals)
    for row in rows:
        lm.model(input_ids=torch.tensor([row.rendered.ids]))
    hook.remove()
    total = torch.zeros(read[0].shape[-1])
    for row, values in zip(rows, read, strict=True):
        first, last = row.rendered.prompt_length, len(row.rendered.ids)
        counted = range(first, last) if positions == "response" else range(first - 1, last - 1)
        for place in counted:
            total += values[place] ** 2 / (len(counted) if aggregation == "samples" else 1)
    return (total / len(rows)).sqrt().detach()


@pytest.mark.parametrize("positions", ["response", "predicting"])
@pytest.mark.parametrize("aggregation", ["tokens", "samples"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_equal_those_of_the_slow_twin(
    architecture: str, positions: Literal["response", "predicting"], aggregation: Literal["tokens", "samples"]
) -> None:
    lm = tiny_lm(architecture)
    scores = locate(lm, PROMPTS, Wanda(positions=positions, aggregation=aggregation), batch_size=2)
    assert scores.values.keys() == {part.name for part in lm.parts.eligible()}
    for name, found in scores.values.items():
        weight = lm.model.get_parameter(name).detach().abs()
        norms = twin(lm, name, positions, aggregation)
        expected = weight * norms if architecture == "llama" else weight * norms.unsqueeze(1)  # Conv1D is (in, out)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def in_order(rows: torch.Tensor) -> torch.Tensor:
    return rows[torch.argsort(rows[:, 0])]


@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_are_seen_to_read_what_they_read(architecture: str) -> None:
    lm = tiny_lm(architecture)
    lm.model.set_experts_implementation("eager")
    stacked = {
        part.name: lm.model.get_parameter(part.name) for part in lm.parts.eligible() if part.expert_dim is not None
    }
    ids = torch.arange(4, 40).view(2, 18)
    with torch.no_grad():
        with EagerReads(stacked) as eager:
            expected = lm.model(input_ids=ids).logits
        seen: dict[tuple[str, int], Inputs] = {}
        entering: list[torch.Tensor] = []
        first = next(iter(stacked)).rpartition(".")[0]
        hook = lm.model.get_submodule(first).register_forward_pre_hook(
            lambda _, arguments: entering.append(arguments[0])
        )

        def see(inputs: Inputs) -> None:
            if inputs.expert is not None:
                seen[inputs.part.name, inputs.expert] = inputs

        with observed_inputs(lm, see):
            found = lm.model(input_ids=ids).logits
        hook.remove()
        after = lm.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, expected)  # the model's own forward is back
    assert seen.keys() == eager.read.keys()
    for place, rows in eager.read.items():
        torch.testing.assert_close(in_order(seen[place].values), in_order(torch.cat(rows)), rtol=1e-4, atol=1e-5)
    for (name, _), inputs in seen.items():
        if name.startswith(first) and "down" not in name:
            assert torch.equal(inputs.values, entering[0].reshape(-1, inputs.values.shape[1])[inputs.tokens])


def test_an_expert_that_nothing_reached_scores_zero_and_is_named() -> None:
    lm = tiny_lm("qwen3_moe")
    scores = locate(lm, prompt_set("one", ["Hm"], ["No."]), "wanda")
    unread = scores.settings["unread_experts"]
    assert isinstance(unread, list)
    zero = [
        f"{name}[{expert}]"
        for name, values in scores.values.items()
        if values.dim() == 3
        for expert in range(len(values))
        if not values[expert].any()
    ]
    assert unread == zero


def test_experts_of_an_unknown_kind_are_refused() -> None:
    lm = tiny_lm("qwen3_moe")
    owner = next(part.name for part in lm.parts.eligible() if part.expert_dim is not None).rpartition(".")[0]
    del lm.model.get_submodule(owner).is_transposed
    with pytest.raises(ModelError, match=r"cannot be called one by one.*use a method that needs gradients only"):
        locate(lm, PROMPTS, "wanda")


@pytest.mark.parametrize("settings", [{"positions": "prompt"}, {"aggregation": "max"}])
def test_unknown_settings_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="use "):
        locate(tiny_lm("llama"), PROMPTS, "wanda", **settings)
