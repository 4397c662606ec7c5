"""Several methods in one go find what each finds alone, with fewer passes."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
import torch

from ballast.errors import NumericalError, PromptError, UsageError
from ballast.locate import METHODS, Scores, engine, inputs, locate, locate_all, together
from ballast.locate.inputs import Reader
from ballast.locate.neurons import Neurons
from ballast.locate.registry import Task
from ballast.locate.rows import WeightedRow
from ballast.locate.together import SharedPasses
from ballast.locate.unit_scores import UnitScores
from ballast.locate.wanda import Wanda
from ballast.models import LanguageModel
from ballast.prompts.batches import TokenBatch
from ballast.prompts.chat import render
from tests.worlds import REFUSALS, REQUESTS, assert_close, prompt_set, same_bits, tiny_lm, weighted_rows

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", REQUESTS, REFUSALS)
SHARING = ("esi", "wanda", "gradient", "gradient_times_weight")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many passes of each kind were made over all rows."""
    counts: Counter[str] = Counter()

    def counted(name: str, original: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **options)

        return run

    monkeypatch.setattr(together, "accumulate", counted("backward", engine.accumulate))
    monkeypatch.setattr(together, "read_inputs", counted("forward", inputs.read_inputs))
    return counts


def alone(lm: LanguageModel, method: str) -> Scores:
    return locate(lm, PROMPTS, method, batch_size=2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss", "gemma2"])
def test_as_if_alone(name: str, passes: Counter[str]) -> None:
    lm = tiny_lm(name)
    found = locate_all(lm, PROMPTS, SHARING, batch_size=2)
    assert passes == {"backward": 1}
    for method, scores in zip(SHARING, found, strict=True):
        expected = alone(lm, method)
        if method == "wanda":  # its forward pass is now one with gradients
            assert_close(scores.values, expected.values, share=1e-5)
        else:
            assert_close(scores.values, expected.values, share=1e-4)
        assert (scores.method, scores.settings.keys()) == (method, expected.settings.keys())
        assert len(scores.select(0.02)) == len(expected.select(0.02))


def test_without_experts_the_bits_are_the_same() -> None:
    lm = tiny_lm()
    for method, scores in zip(SHARING, locate_all(lm, PROMPTS, SHARING, batch_size=2), strict=True):
        assert same_bits(scores.values, alone(lm, method).values), method


def test_each_kind_of_pass_once(passes: Counter[str]) -> None:
    lm = tiny_lm()
    methods = ["snip", "wanda", "esi", "random", "neurons"]
    found = locate_all(lm, PROMPTS, methods, batch_size=2)
    assert passes == {"backward": 1}  # signed sums, with absolute values of every row and the inputs on the way
    assert [scores.method for scores in found] == methods
    assert same_bits(found[0].values, alone(lm, "snip").values)
    passes.clear()
    locate_all(lm, PROMPTS, ["wanda", "wanda"])
    assert passes == {"forward": 1}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("beside", ["wanda", "esi"])
def test_prompts_are_read_where_their_responses_follow(name: str, beside: str, passes: Counter[str]) -> None:
    lm = tiny_lm(name)
    neurons = Neurons(kinds=("feed_forward", "output", "value"))
    found, _ = locate_all(lm, PROMPTS, [neurons, beside], batch_size=2)
    assert sum(passes.values()) == 1
    expected = locate(lm, PROMPTS, neurons, batch_size=3)
    assert isinstance(found, UnitScores)
    assert isinstance(expected, UnitScores)
    for value, other in zip(found.values, expected.values, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-8)


def test_other_prompts_are_another_pass(passes: Counter[str]) -> None:
    """One prompt twice is not the same as two prompts."""
    lm, neurons = tiny_lm(), Neurons(kinds=("output",))
    twice = prompt_set("twice", [REQUESTS[0], *REQUESTS], [REFUSALS[1], *REFUSALS])
    shared = SharedPasses()
    tasks = [Task(lm, prompts, passes=shared) for prompts in (twice, PROMPTS)]
    shared.run([partial(Wanda().score, tasks[0]), partial(neurons.score, tasks[1])])
    assert passes == {"forward": 2}


def test_which_pass_prompts_are_read_in_does_not_depend_on_who_asks_first() -> None:
    """The order of threads is not the same in every run, and the length of a batch can change bits."""
    lm = tiny_lm()
    found = []
    for turn in (1, -1):
        lengths: list[int] = []

        def noted(batch: TokenBatch, lengths: list[int] = lengths) -> torch.Tensor:
            lengths.append(batch.input_ids.shape[1])
            return batch.attention_mask.float()

        def ignored(batch: TokenBatch) -> torch.Tensor:
            return batch.response_mask.float()

        asked = [
            (prompt_set("harmful", REQUESTS, ["No."] * 4), ignored),
            (prompt_set("harmful", REQUESTS, ["I will never do that."] * 4), ignored),
            (prompt_set("harmful", REQUESTS), noted),
        ]
        requests = []
        for prompts, weigh in asked:
            rows = [
                WeightedRow(prompt.id, render(lm.tokenizer, prompt.prompt, prompt.response), 1.0) for prompt in prompts
            ]
            reader = Reader(weigh, lambda *_: None)
            requests.append(together.Request(Task(lm, prompts), tuple(rows), reader, Future()))
        together.serve(requests[::turn])
        found.append(lengths)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_rows_of_experts_are_a_pass_of_their_own(name: str, passes: Counter[str]) -> None:
    lm = tiny_lm(name)
    found = locate_all(lm, PROMPTS, ["snip", "esi"], batch_size=2)
    assert passes == {"backward": 2}
    assert same_bits(found[0].values, alone(lm, "snip").values)


def test_other_rows_are_another_pass(passes: Counter[str]) -> None:
    """Without responses of their own, prompts get other refusals in ESI than in Wanda."""
    lm, bare = tiny_lm(), prompt_set("bare", REQUESTS)
    found = locate_all(lm, bare, ["esi", "wanda"])
    assert passes == {"backward": 1, "forward": 1}
    assert same_bits(found[1].values, locate(lm, bare, "wanda").values)


def test_an_error_of_one_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    with pytest.raises(PromptError, match="takes"):
        locate_all(lm, prompt_set("long", ["x" * 600], ["No."]), ["esi", "magnitude", "wanda"])
    with torch.no_grad():
        lm.model.get_parameter("model.layers.0.mlp.up_proj.weight").fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        locate_all(lm, PROMPTS, ["esi", "wanda", "snip"])
    assert not any(parameter.grad is not None for parameter in lm.model.parameters())


def test_names() -> None:
    with pytest.raises(UsageError, match="no method 'snap'"):
        locate_all(tiny_lm(), PROMPTS, ["esi", "snap"])
    with pytest.raises(UsageError, match="There is no method to locate with"):
        locate_all(tiny_lm(), PROMPTS, [])
    assert set(SHARING) <= METHODS.keys()


def test_methods_use_the_model_one_at_a_time() -> None:
    """Else two with hooks on the model would see each other's passes, and a streamed block would go in between."""
    lm = tiny_lm()
    shared, busy = SharedPasses(), list[str]()
    reader = Reader(lambda batch: batch.attention_mask.float(), lambda *_: None)

    def job(label: str) -> str:
        for _ in range(2):
            busy.append(label)
            time.sleep(0.05)
            assert busy == [label]
            busy.clear()
            shared.inputs(Task(lm, PROMPTS), weighted_rows(lm), reader)
        return label

    assert shared.run([partial(job, label) for label in "abc"]) == ["a", "b", "c"]
