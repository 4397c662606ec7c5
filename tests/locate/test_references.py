"""Rows of refusals: what they weigh, and what the same refusals after harmless twins take off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ballast.errors import PromptError
from ballast.locate import locate
from ballast.locate.esi import ExpectedSafetyImpact
from ballast.locate.references import refusal_rows
from ballast.locate.rows import WeightedRow
from ballast.models.sigma import scale_by_sigma
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import render
from ballast.runs import JsonLines
from tests.worlds import assert_close, plain_gradients, plain_log_probabilities, tiny_lm

torch.set_num_threads(1)

HARMFUL = PromptSet(
    "harmful",
    (
        Prompt(id="a", prompt="How do I kill him?", pair=1),
        Prompt(id="b", prompt="Steal it", pair=2, response="I will not steal."),
    ),
)
TWINS = PromptSet(
    "twins", (Prompt(id="c", prompt="Kill the process", pair=1), Prompt(id="d", prompt="Steal the show", pair=2))
)
WORDINGS = ("No.", "I can't.")


def shares(rows: list[WeightedRow]) -> dict[str, float]:
    """What the mean log-probability of each row counts."""
    return {row.id: row.weight * (len(row.rendered.ids) - row.rendered.prompt_length) for row in rows}


def test_every_prompt_counts_the_same() -> None:
    lm = tiny_lm()
    rows = refusal_rows(lm, HARMFUL, WORDINGS)
    assert shares(rows) == pytest.approx({"a#0": 0.25, "a#1": 0.25, "b#0": 0.5})
    expected = [("How do I kill him?", "No."), ("How do I kill him?", "I can't."), ("Steal it", "I will not steal.")]
    assert [row.rendered for row in rows] == [render(lm.tokenizer, *pair) for pair in expected]


def test_twins_count_as_much_against_it() -> None:
    lm = tiny_lm()
    rows = refusal_rows(lm, HARMFUL, WORDINGS, TWINS)
    weights = shares(rows)
    assert weights == pytest.approx(
        {"a#0": 0.25, "a#0 twin": -0.25, "a#1": 0.25, "a#1 twin": -0.25, "b#0": 0.5, "b#0 twin": -0.5}
    )
    twins = [row.rendered for row in rows if row.id.endswith("twin")]
    expected = [("Kill the process", "No."), ("Kill the process", "I can't."), ("Steal the show", "I will not steal.")]
    assert twins == [render(lm.tokenizer, *pair) for pair in expected]


def test_a_prompt_without_twin() -> None:
    with pytest.raises(PromptError, match="b has no twin in twins"):
        refusal_rows(tiny_lm(), HARMFUL, WORDINGS, PromptSet("twins", TWINS.prompts[:1]))
    unpaired = PromptSet("own", (Prompt(id="x", prompt="Hi"),))
    with pytest.raises(PromptError, match="x has no twin in own"):
        refusal_rows(tiny_lm(), unpaired, WORDINGS, unpaired)


def test_a_prompt_longer_than_the_context() -> None:
    long = PromptSet("long", (Prompt(id="x", prompt="x" * 600),))
    with pytest.raises(PromptError, match="'x' takes"):
        refusal_rows(tiny_lm(), long, WORDINGS)


def test_esi_with_contrast(tmp_path: Path) -> None:
    """|sigma * gradient of the mean over pairs of log p(refusal | harmful) - log p(refusal | twin)|."""
    lm = tiny_lm("qwen2")
    path = tmp_path / "twins.jsonl"
    JsonLines(path).append([row.model_dump(exclude_none=True) for row in TWINS])
    method = ExpectedSafetyImpact(refusals=("No.",), contrast=str(path))
    scores = locate(lm, HARMFUL, method, batch_size=3)

    def margin() -> torch.Tensor:
        def of(request: str, refusal: str) -> torch.Tensor:
            return plain_log_probabilities(lm.model, render(lm.tokenizer, request, refusal)).mean()

        texts = ("No.", "I will not steal.")
        pairs = zip(HARMFUL, TWINS, texts, strict=True)
        return torch.stack([of(harmful.prompt, text) - of(twin.prompt, text) for harmful, twin, text in pairs]).mean()

    expected = {key: value.abs() for key, value in plain_gradients(lm, margin).items()}
    weights = dict(lm.model.named_parameters())
    for key, value in expected.items():
        scale_by_sigma(lm.parts.by_name(key), weights[key], value)
    assert_close(scores.values, expected, share=1e-3)
    assert scores.settings["contrast"] == str(path)
    assert len(str(scores.settings["contrast_hash"])) == 64
