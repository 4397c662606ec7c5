"""What is measured with scaled layers, against copies of the model with multiplied weights; and measured once."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from ballast.errors import RunError
from ballast.evaluate.answers import generate
from ballast.locate.layers.gap_curve import Window
from ballast.locate.layers.over_rejection import UNSCALED, Mode, OverRejection
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.prompts import load_prompts
from ballast.prompts.chat import render
from tests.locate.world import ANSWERED, BENIGN, LAYERS, LetterJudge, deep_lm
from tests.worlds import plain_log_probabilities, prompt_set

torch.set_num_threads(1)

BENIGN_SET = prompt_set("benign", BENIGN)
UTILITY = prompt_set("utility", list(ANSWERED), list(ANSWERED.values()))
SPANS = (Window(1, 3), Window(0, LAYERS))


def measured(lm: LanguageModel, judge: LetterJudge, file: Path | None = None, tokens: int = 6) -> OverRejection:
    return OverRejection(lm, BENIGN_SET, UTILITY, judge, tokens, 4, file)


def multiplied(lm: LanguageModel, window: Window, alpha: float, mode: Mode) -> LanguageModel:
    """A copy whose weights act as scaled layers do: all of them, or the last ones of each sublayer."""
    twin = copy.deepcopy(lm.model)
    with torch.no_grad():
        for part in lm.parts.eligible():
            if part.layer in range(*window) and (mode == "output" or part.role in ("output", "down")):
                twin.get_parameter(part.name).mul_(alpha)
    return LanguageModel(twin, lm.tokenizer, "twin")


@pytest.mark.parametrize("mode", ["output", "residual"])
def test_answers_are_those_of_scaled_weights(mode: Mode) -> None:
    lm, judge = deep_lm(), LetterJudge()
    before, scaled = fingerprints(lm.model), measured(lm, judge)
    for number, window in enumerate(SPANS):
        verdicts = scaled.verdicts(window, 1.2, mode)
        twin = generate(multiplied(lm, window, 1.2, mode), BENIGN_SET, max_new_tokens=6, batch_size=4)
        assert judge.batches[number] == [row.answer for row in twin]
        sums = [sum(map(ord, row.answer)) % 3 for row in twin]
        assert verdicts == "".join("rcd"[rest] for rest in sums)
        assert scaled.refused(window, 1.2, mode) == [rest == 0 for rest in sums]
        assert scaled.refusal_rate(window, 1.2, mode) == sums.count(0) / len(BENIGN)
    plain = generate(lm, BENIGN_SET, max_new_tokens=6, batch_size=4)
    assert judge.batches[0] != [row.answer for row in plain] != judge.batches[-1]
    assert fingerprints(lm.model) == before


@pytest.mark.parametrize("mode", ["output", "residual"])
def test_the_loss_is_the_mean_over_all_tokens(mode: Mode) -> None:
    lm = deep_lm()
    rows = [render(lm.tokenizer, prompt.prompt, prompt.response) for prompt in UTILITY]
    for window in (UNSCALED, *SPANS):
        twin = multiplied(lm, window, 1.2, mode).model
        with torch.no_grad():
            tokens = torch.cat([plain_log_probabilities(twin, row) for row in rows])
        found = measured(lm, LetterJudge()).utility_loss(window, 1.2, mode)
        assert found == pytest.approx(-tokens.mean().item(), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["output", "residual"])
def test_the_change_of_logits_is_that_of_the_first_prompt(mode: Mode) -> None:
    lm = deep_lm()
    ids = torch.tensor([render(lm.tokenizer, BENIGN[0]).ids])
    twin = multiplied(lm, SPANS[0], 1.2, mode).model
    expected = (twin(input_ids=ids).logits[0, -1] - lm.model(input_ids=ids).logits[0, -1]).norm().item()
    assert measured(lm, LetterJudge()).logit_change(SPANS[0], 1.2, mode) == pytest.approx(expected, rel=1e-3)


class TestOnce:
    def test_a_window_is_answered_once(self) -> None:
        judge = LetterJudge()
        one = measured(deep_lm(), judge)
        for _ in range(3):
            one.refused(Window(1, 3), 1.1, "output")
            one.verdicts(Window(1, 3), 1.1, "output")
            one.refusal_rate(Window(1, 3), 1.1, "output")
        assert len(judge.batches) == 1
        one.refused(Window(1, 3), 1.2, "output")
        one.refused(Window(1, 3), 1.1, "residual")
        one.refused(Window(1, 4), 1.1, "output")
        assert len(judge.batches) == 4

    def test_the_unscaled_model_is_one_window_whatever_the_factor(self) -> None:
        judge = LetterJudge()
        one = measured(deep_lm(), judge)
        assert one.verdicts(UNSCALED, 1, "output") == one.verdicts(UNSCALED, 1.3, "residual")
        assert len(judge.batches) == 1

    def test_a_later_call_continues_from_the_file(self, tmp_path: Path) -> None:
        judge, file = LetterJudge(), tmp_path / "windows"
        first = measured(deep_lm(), judge, file)
        verdicts, loss = first.verdicts(Window(1, 3), 1.1, "output"), first.utility_loss(Window(1, 3), 1.1, "output")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(row["of"]["window"], row["value"]) for row in rows] == [([1, 3], verdicts), ([1, 3], loss)]
        kept = file.read_bytes()
        again = measured(deep_lm(), judge, file)
        assert again.verdicts(Window(1, 3), 1.1, "output") == verdicts
        assert again.utility_loss(Window(1, 3), 1.1, "output") == loss
        assert len(judge.batches) == 1
        assert file.read_bytes() == kept

    def test_other_work_is_measured_anew(self, tmp_path: Path) -> None:
        judge, file = LetterJudge(), tmp_path / "windows"
        lm = deep_lm()
        measured(lm, judge, file).verdicts(Window(1, 3), 1.1, "output")
        measured(lm, judge, file, tokens=5).verdicts(Window(1, 3), 1.1, "output")
        with torch.no_grad():
            next(iter(lm.model.parameters())).add_(0.1)
        measured(lm, judge, file).verdicts(Window(1, 3), 1.1, "output")
        other = OverRejection(lm, load_prompts("builtin/ordinary", limit=3), UTILITY, judge, 6, 4, file)
        other.verdicts(Window(1, 3), 1.1, "output")
        assert len(judge.batches) == 4

    def test_a_file_of_something_else_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "windows"
        file.write_text("no JSON\n")
        with pytest.raises(RunError, match="damaged"):
            measured(deep_lm(), LetterJudge(), file).verdicts(Window(1, 3), 1.1, "output")
