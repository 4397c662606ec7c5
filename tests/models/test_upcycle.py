"""A mixture of copied experts computes what the dense model computes."""

from __future__ import annotations

import pytest
import torch

from ballast import load_prompts, locate, open_model
from ballast.errors import ModelError
from ballast.locate.inputs import Inputs, observed_inputs
from ballast.models.fingerprint import fingerprints
from ballast.models.generation import answer_batch
from ballast.models.upcycle import upcycled
from ballast.prompts.chat import render
from tests.worlds import tiny_lm

torch.set_num_threads(1)

IDS = torch.randint(4, 200, (3, 25), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["llama", "mistral"])
@torch.no_grad()
def test_logits_are_those_of_the_dense_model(name: str) -> None:
    lm = tiny_lm(name)
    before = fingerprints(lm.model)
    mixture = upcycled(lm, experts=4, per_token=2)
    torch.testing.assert_close(mixture.model(IDS).logits, lm.model(IDS).logits, rtol=1e-4, atol=1e-5)
    assert fingerprints(lm.model) == before
    assert {part.role for part in mixture.parts.eligible()} == {
        *("query", "key", "value", "output", "experts.gate_up", "experts.down")
    }


@torch.no_grad()
def test_tokens_go_to_different_experts_that_count_alike() -> None:
    mixture = upcycled(tiny_lm(), experts=4, per_token=2)
    used: dict[int | None, int] = {}

    def see(inputs: Inputs) -> None:
        if inputs.part.layer == 1 and inputs.part.role == "experts.down":
            used[inputs.expert] = len(inputs.values)

    with observed_inputs(mixture, see):
        mixture.model(IDS)
    assert sorted(used) == [0, 1, 2, 3]
    assert sum(used.values()) == 2 * IDS.numel()
    shares = mixture.model(IDS, output_router_logits=True).router_logits[1].softmax(dim=-1)
    torch.testing.assert_close(shares, torch.full_like(shares, 0.25), rtol=0, atol=0.01)


def test_another_kind_of_model() -> None:
    with pytest.raises(ModelError, match="no dense Llama or Mistral model"):
        upcycled(tiny_lm("gpt2"))


@pytest.mark.model
def test_smollm2() -> None:
    """The real model: the same greedy answer, and every expert can be located on."""
    lm = open_model("smollm2", dtype="float32")
    mixture = upcycled(lm, experts=2, per_token=2)
    prompt = render(lm.tokenizer, "Name three colours.").ids
    logits = [one.model(torch.tensor([prompt])).logits for one in (lm, mixture)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)
    assert answer_batch(mixture, [prompt], 6) == answer_batch(lm, [prompt], 6)
    region = locate(mixture, load_prompts("builtin/refusals", limit=1), "wanda").select(0.01)
    assert {region.layout[name].role for name in region.indices} & {"experts.gate_up", "experts.down"}
