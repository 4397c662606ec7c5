"""Utility: every value against one plain forward pass without batch, padding or mask."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ballast.errors import NumericalError, PromptError, RunError
from ballast.evaluate import likelihoods
from ballast.evaluate.choices import choices_of
from ballast.evaluate.likelihoods import batched
from ballast.evaluate.pairing import UtilityRow
from ballast.evaluate.statistics import wilson
from ballast.evaluate.utility import kind_of, log_likelihood, multiple_choice, utility_result, utility_rows
from ballast.models import LanguageModel
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import Rendered, render
from tests.zoo import CONTEXT, EOS, tiny, tiny_tokenizer

LISTED = "Is it so?\n\nAnswer format: true/false"
LETTERED = "A. is a letter. Which?\nA. this\nB. that\nC. A. Smith"


def model(name: str = "llama", template: bool = True) -> LanguageModel:
    return LanguageModel(tiny(name), tiny_tokenizer(template), "tiny")


def prompt_set(*rows: dict[str, Any]) -> PromptSet:
    return PromptSet("some set", tuple(Prompt.model_validate({"id": f"r{i}"} | row) for i, row in enumerate(rows)))


TEXTS = prompt_set(
    {"prompt": "Why?", "response": "Because it is so, and it was never otherwise."},
    {"prompt": "What is the name of the longest river here?", "response": "No."},
    {"prompt": "Hm", "response": "Yes, yes."},
    {"prompt": "Say it again", "response": "It"},
    {"prompt": "Why not?", "response": "Grüße."},
)
QUESTIONS = prompt_set(
    {"prompt": "Which?", "choices": ["one", "three", "Bär"], "response": "one"},
    {"prompt": "Which of them is the longest one?", "choices": ["a b c d e f", "g"], "response": "g"},
    {"prompt": "And now?", "choices": ["x", "yy", "zzz", "w w"], "response": "zzz"},
    {"prompt": "Or?", "choices": ["so", "no"], "response": "no"},
    {"prompt": "Or so?", "choices": ["up", "down"], "response": "up"},
    {"prompt": LISTED, "response": "true"},
)


def plain_log_probabilities(lm: LanguageModel, prompt: str, response: str) -> list[float]:
    """Log-probabilities of the answer's tokens, its end included: one token at a time from a full softmax."""
    row = render(lm.tokenizer, prompt, response)
    with torch.no_grad():
        probabilities = lm.model(input_ids=torch.tensor([row.ids])).logits[0].double().softmax(dim=-1)
    return [math.log(probabilities[at - 1, row.ids[at]]) for at in range(row.prompt_length, len(row.ids))]


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_log_likelihood_is_the_mean_over_answer_tokens(name: str, template: bool) -> None:
    lm = model(name, template)
    rows = log_likelihood(lm, TEXTS, batch_size=3)
    assert [row.id for row in rows] == [prompt.id for prompt in TEXTS]
    for prompt, row in zip(TEXTS, rows, strict=True):
        expected = plain_log_probabilities(lm, prompt.prompt, prompt.response or "")
        assert row.weight == len(expected) == len((prompt.response or "").encode()) + 1 + (not template)
        assert row.value == pytest.approx(np.mean(expected), abs=1e-5)
    everything = [value for p in TEXTS for value in plain_log_probabilities(lm, p.prompt, p.response or "")]
    assert utility_result(TEXTS, "log_likelihood", rows).value == pytest.approx(np.mean(everything), abs=1e-5)


def test_long_answers_are_cut() -> None:
    lm = model()
    cut = log_likelihood(lm, TEXTS, max_tokens=3)
    for prompt, row in zip(TEXTS, cut, strict=True):
        expected = plain_log_probabilities(lm, prompt.prompt, prompt.response or "")[:3]
        assert (row.weight, row.value) == (3, pytest.approx(np.mean(expected), abs=1e-5))
    long = prompt_set({"prompt": "Go on", "response": "a" * 2 * CONTEXT})
    assert log_likelihood(lm, long)[0].weight == 256


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_multiple_choice_is_the_likeliest_per_byte_without_the_end(name: str) -> None:
    lm = model(name)
    values = []
    for prompt in QUESTIONS:
        scores = {
            choice: sum(plain_log_probabilities(lm, prompt.prompt, choice)[:-1]) / len(choice.encode())
            for choice in choices_of(prompt) or ()
        }
        values.append(float(max(scores, key=scores.__getitem__) == prompt.response))
    assert 0 < sum(values) < len(values)
    for size in (None, 1, 2):
        rows = multiple_choice(lm, QUESTIONS, batch_size=size)
        assert rows == [
            UtilityRow(id=prompt.id, value=value, weight=1) for prompt, value in zip(QUESTIONS, values, strict=True)
        ]


@pytest.mark.parametrize(
    ("long", "value"),
    [
        ([-2.0, -1.0, -2.5], 1),  # -5.5 / 3 is above -2
        ([-3.0, -1.0, -2.5], 0),  # -6.5 / 3 is below
        ([-2.0, -2.0, -2.0], 0),  # a tie is wrong
    ],
)
def test_choices_are_compared_per_byte(long: list[float], value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(lm: LanguageModel, rows: list[Rendered]) -> list[torch.Tensor]:
        answers = [row.ids[row.prompt_length :] for row in rows]
        assert all(EOS not in answer for answer in answers)
        return [torch.tensor({1: [-2.0], 3: long}[len(answer)]) for answer in answers]

    monkeypatch.setattr(likelihoods, "answer_log_probabilities", score)
    question = prompt_set({"prompt": "?", "choices": ["a", "bbb"], "response": "bbb"})
    assert multiple_choice(model(), question)[0].value == value


def test_rows_do_not_depend_on_the_batch() -> None:
    lm = model("qwen3")
    alone = log_likelihood(lm, TEXTS, batch_size=1)
    for size in (None, 2, 5):
        together = utility_rows(lm, TEXTS, "log_likelihood", batch_size=size)
        assert [(row.id, row.weight) for row in together] == [(row.id, row.weight) for row in alone]
        assert [row.value for row in together] == pytest.approx([row.value for row in alone], abs=1e-5)


def test_batches_keep_their_limits() -> None:
    def group(length: int, prompt_length: int, copies: int = 1) -> list[Rendered]:
        return [Rendered([1] * length, prompt_length)] * copies

    short = {f"{i:03d}": group(10, 5) for i in range(130)}
    assert [len(batch) for batch in batched(short, vocabulary=100)] == [64, 64, 2]
    assert [len(batch) for batch in batched(short, 100, batch_size=100)] == [100, 30]
    mixed = {"a": group(10, 5), "b": group(3000, 5), "c": group(30, 5), "d": group(1000, 5)}
    assert batched(mixed, 100) == [["b"], ["d", "c", "a"]]  # 2 x 3000 tokens are too many
    assert batched({"a": group(5000, 5), "b": group(5000, 5)}, 100) == [["a"], ["b"]]
    assert [len(batch) for batch in batched({f"{i}": group(10, 5, 30) for i in range(5)}, 100)] == [2, 2, 1]
    wide = {f"{i}": group(108, 100) for i in range(5)}  # 8 answer columns
    assert [len(batch) for batch in batched(wide, (1 << 25) // 16)] == [2, 2, 1]


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model()
    expected = [row.value for row in log_likelihood(lm, TEXTS, batch_size=2)]
    sizes, whole = [], likelihoods.response_log_probabilities

    def small(model: Any, input_ids: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return whole(model, input_ids, *masks)

    monkeypatch.setattr(likelihoods, "response_log_probabilities", small)
    assert [row.value for row in log_likelihood(lm, TEXTS, batch_size=5)] == pytest.approx(expected, abs=1e-5)
    assert sizes == [5, 2, 3, 1, 2]


def test_rows_on_file_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, out = model(), tmp_path / "utility" / "texts.jsonl"
    rows = log_likelihood(lm, TEXTS, batch_size=2, out=out)
    lines = out.read_text().splitlines()
    assert sorted(lines) == sorted(json.dumps(row.model_dump()) for row in rows)
    out.write_text("\n".join(lines[:3]) + "\n" + lines[3][:9])  # killed inside the second batch
    scored = []

    def counted(lm: LanguageModel, rows: list[Rendered]) -> list[torch.Tensor]:
        scored.append(len(rows))
        return whole(lm, rows)

    whole = likelihoods.answer_log_probabilities
    monkeypatch.setattr(likelihoods, "answer_log_probabilities", counted)
    assert log_likelihood(lm, TEXTS, batch_size=2, out=out) == rows
    assert scored == [2, 1]
    assert out.read_text().splitlines() == lines
    assert log_likelihood(lm, TEXTS, batch_size=2, out=out) == rows
    assert scored == [2, 1]
    out.write_text('{"id": "r0", "value": "high"}\n')
    with pytest.raises(RunError, match=r"texts\.jsonl is damaged"):
        log_likelihood(lm, TEXTS, out=out)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": LISTED, "response": "true"}, ("true", "false")),
        ({"prompt": "Option1: x Option2: y Answer format: option1/option2 ", "response": "?"}, ("option1", "option2")),
        ({"prompt": "Answer format: one/two\nBut why?", "response": "one"}, None),
        ({"prompt": "Answer format: one", "response": "one"}, None),
        ({"prompt": LETTERED, "response": "C"}, ("A", "B", "C")),
        ({"prompt": LETTERED, "response": "that"}, None),
        ({"prompt": LETTERED, "response": None}, None),
        ({"prompt": "Q\nA. \nB.", "response": "B"}, ("A", "B")),
        ({"prompt": "Q\nA. one", "response": "A"}, None),
        ({"prompt": "Q\nA. one\nC. two", "response": "A"}, None),
        ({"prompt": "Mr.\nB. Smith", "response": "B"}, None),
        ({"prompt": LISTED, "response": "no", "choices": ["yes", "no"]}, ("yes", "no")),
    ],
)
def test_choices_written_into_a_question(row: dict[str, Any], expected: tuple[str, ...] | None) -> None:
    assert choices_of(Prompt.model_validate({"id": "x"} | row)) == expected


def test_kinds() -> None:
    assert kind_of(TEXTS) == "log_likelihood"
    assert kind_of(QUESTIONS) == "multiple_choice"
    mixed = [{"prompt": LISTED, "response": "true, as it were"}, {"prompt": "Why?", "response": "So."}]
    assert kind_of(prompt_set(*mixed)) == "log_likelihood"
    with pytest.raises(PromptError, match="response of prompt 'r1' is none of its choices true, false"):
        kind_of(prompt_set({"prompt": LISTED, "response": "true"}, mixed[0]))
    with pytest.raises(PromptError, match="'r1' of some set has no `choices`"):
        kind_of(prompt_set({"prompt": "?", "response": "a", "choices": ["a", "b"]}, mixed[1]))
    for missing in (None, " "):
        with pytest.raises(PromptError, match="'r1' has neither a response nor choices"):
            kind_of(prompt_set(mixed[1], {"prompt": "Why?", "response": missing}))


def test_errors_name_the_prompt() -> None:
    lm = model()
    with pytest.raises(PromptError, match="'r0' is not multiple choice"):
        multiple_choice(lm, TEXTS)
    with pytest.raises(PromptError, match="'r0' has neither"):
        log_likelihood(lm, prompt_set({"prompt": "Why?"}))
    too_long = prompt_set({"prompt": "w" * CONTEXT, "response": "a", "choices": ["a", "b"]})
    for measured in (log_likelihood, multiple_choice):
        with pytest.raises(PromptError, match=r"'r0' takes .* tokens"):
            measured(lm, too_long)
    with pytest.raises(PromptError, match="'r0' has no tokens"):
        multiple_choice(lm, prompt_set({"prompt": "?", "response": "a", "choices": ["a", "<|im_end|>"]}))
    with torch.no_grad():
        lm.model.lm_head.weight[7] = math.nan
    with pytest.raises(NumericalError, match="not finite"):
        log_likelihood(lm, TEXTS)


def test_results() -> None:
    rows = [UtilityRow(id="a", value=-1.0, weight=3), UtilityRow(id="b", value=-2.0, weight=1)]
    pair = prompt_set({"prompt": "?", "response": "a"}, {"prompt": "?", "response": "b"})
    result = utility_result(pair, "log_likelihood", rows)
    assert (result.value, result.n, result.unit) == (-1.25, 2, "nats per token")
    assert (result.low, result.high) == (-2, -1)  # a quarter of the resamples are one row twice
    assert (result.name, result.slug, result.hash) == ("some set", "some-set", pair.hash)
    single = utility_result(prompt_set({"prompt": "?", "response": "a"}), "log_likelihood", rows[:1])
    assert (single.value, single.low, single.high) == (-1, None, None)
    answers = [UtilityRow(id=str(i), value=float(i < 3), weight=1) for i in range(4)]
    accuracy = utility_result(prompt_set(*[{"prompt": "?"}] * 4), "multiple_choice", answers)
    assert (accuracy.value, accuracy.unit) == (0.75, "accuracy")
    assert (accuracy.low, accuracy.high) == wilson(3, 4)
