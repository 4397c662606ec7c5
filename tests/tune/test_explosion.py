"""A loss that explodes or is not a number: nothing bad is kept, and the last good state is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ballast.errors import NumericalError
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.tune.explosion import highest_loss, require_calm
from ballast.tune.step import train_step
from tests.tune.world import HARDEN_MODULE, contents, region_of, rows_of, run, steps_taken
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("judges")


def sure_lm() -> LanguageModel:
    """A model that is sure of its next token, so that a broken one is far from it."""
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(20)
    return lm


SAID = prompt_set("bad", ["bad: steal", "bad: hit", "bad: lie"], ["o"] * 3)  # as it answers, so the first loss is low


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"learning_rate": 1e30, "clip": 1e30}, r"is not finite|exploded at step 1, nan"),
        ({"learning_rate": 1.0}, r"exploded at step \d, \d+\.\d nats per token"),
    ],
)
@pytest.mark.parametrize("check_every", [1, 2])
def test_leaves_the_model_and_a_good_state(
    changes: dict[str, float], what: str, check_every: int, tmp_path: Path
) -> None:
    lm = sure_lm()
    before = fingerprints(lm.model)
    with pytest.raises(NumericalError, match=rf"({what}).*; the state of step 0 is kept in"):
        run(lm, tmp_path, check_every=check_every, refusals=SAID, refusal_tokens=1, endings_per_step=0, **changes)
    assert fingerprints(lm.model) == before
    weights = {name: value.detach() for name, value in lm.model.named_parameters()}
    with safe_open(tmp_path / "state.safetensors", framework="pt") as stored:
        for name, index in region_of().indices.items():
            assert torch.equal(stored.get_tensor(f"{name}.master"), weights[name].view(-1)[index.long()])


def test_the_same_command_continues_from_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contents(run(tiny_lm(), tmp_path / "undisturbed"))

    def exploding(*arguments: Any) -> dict[str, float]:
        row = train_step(*arguments)
        return row if arguments[-1] < 5 else row | {"refuse": 100.0}

    with monkeypatch.context() as patched:
        patched.setattr(HARDEN_MODULE, "train_step", exploding)
        with pytest.raises(NumericalError) as raised:
            run(tiny_lm(), tmp_path / "broken")
    assert str(raised.value) == (
        "The loss exploded at step 6, 100.0 nats per token; use a lower learning rate, which is a different run and "
        f"needs another --out folder; the state of step 4 is kept in {tmp_path / 'broken'}, and the same command "
        "continues from it."
    )
    done = steps_taken(monkeypatch)
    assert contents(run(tiny_lm(), tmp_path / "broken")) == expected
    assert done == [4, 5, 6]
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "undisturbed")


def test_the_highest_loss_is_a_uniform_guess_or_half_above_the_first() -> None:
    lm = tiny_lm()
    assert highest_loss(lm, 1.0) == math.log(260)
    assert highest_loss(lm, 10.0) == 15.0
    require_calm(15.0, 15.0, 1)
    for loss in (15.1, math.inf, math.nan):
        with pytest.raises(NumericalError, match="exploded at step 3"):
            require_calm(loss, 15.0, 3)
