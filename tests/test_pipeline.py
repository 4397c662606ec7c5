"""The main job in one call: what is refused before any work is done."""

from pathlib import Path

import pytest

from ballast import PromptSet, demo, load_prompts
from ballast.errors import PromptError
from ballast.pipeline import upper_half
from tests.e2e.world import make_checkpoint, make_prompts
from tests.worlds import tiny_lm


def test_prompts_are_not_both_tuned_on_and_measured(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny")
    measured = str(make_prompts(tmp_path / "bad.jsonl", "make", 2))
    tuned_on = PromptSet("mine", load_prompts(measured).prompts[:1])
    for training in ({"refusals": tuned_on}, {"harmless": tuned_on}):
        with pytest.raises(PromptError, match=r"^1 prompts are both tuned on and measured"):
            demo(tmp_path / "out", checkpoint, safety=(measured,), overrefusal=(), utility=(), **training)
    assert not (tmp_path / "out").exists()


def test_prompts_are_not_both_located_on_and_measured(tmp_path: Path) -> None:
    """Also where what is tuned on is given, so that the built-in refusals only locate."""
    checkpoint = make_checkpoint(tmp_path / "tiny")
    mine = load_prompts(str(make_prompts(tmp_path / "bad.jsonl", "make", 2)))
    with pytest.raises(PromptError, match=r"prompts are both tuned on and measured \(refusal-"):
        demo(tmp_path / "out", checkpoint, refusals=mine, harmless=(), safety=("builtin/refusals",))
    assert not (tmp_path / "out").exists()


def test_upper_half_of_the_layers() -> None:
    lm = tiny_lm()
    assert {part.layer for part in lm.parts.eligible()} == {0, 1}
    assert upper_half(lm) == range(1, 2)
