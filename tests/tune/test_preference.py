"""Preferring a refusal to the model's own answer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ballast.errors import PromptError
from ballast.evaluate import answers
from ballast.models import LanguageModel
from ballast.models.generation import answer_batch
from ballast.prompts.chat import render
from ballast.tune.lessons import help_lessons, preference_lessons
from ballast.tune.objective import Lesson, lesson_losses
from ballast.tune.preference import Rejected, preference_loss
from tests.tune.world import HARMLESS, record_of, region_of, run
from tests.tune.world import REFUSALS as REFUSED
from tests.worlds import (
    REFUSALS,
    REQUESTS,
    OpeningJudge,
    TableJudge,
    assert_close,
    plain_gradients,
    plain_log_probabilities,
    prompt_set,
    tiny_lm,
)

torch.set_num_threads(1)

COMPLYING = OpeningJudge("what no answer begins with")


def lessons_of(lm: LanguageModel, tokens: int = 3) -> list[Lesson]:
    return preference_lessons(lm, [prompt_set("bad", REQUESTS, REFUSALS)], tokens, COMPLYING, 8, None)


def margin(lm: LanguageModel, lesson: Lesson) -> torch.Tensor:
    assert lesson.rejected is not None
    preferred, rejected = (plain_log_probabilities(lm.model, row) for row in (lesson.rendered, lesson.rejected[0]))
    return preferred.sum() - rejected.sum()


class TestLoss:
    def test_by_hand(self) -> None:
        """The margin rose from -1 to 9 nats: sigmoid(0.1 * 10) = 0.731059."""
        assert float(preference_loss(torch.tensor(9.0), -1.0)) == pytest.approx(0.3132617, abs=1e-6)
        assert float(preference_loss(torch.tensor(-1.0), -1.0)) == pytest.approx(math.log(2))
        assert float(preference_loss(torch.tensor(-11.0), -1.0)) == pytest.approx(1.3132617, abs=1e-6)

    @pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
    def test_is_that_of_each_pair_for_each_of_its_tokens(self, name: str) -> None:
        """Beside refusals learnt by themselves and answers to keep; rows of unequal length."""
        original, lm = tiny_lm(name), tiny_lm(name, seed=1)
        pairs = lessons_of(original)
        pairs[1] = pairs[1]._replace(rendered=pairs[1].rendered._replace(ids=pairs[1].rendered.ids[:-1]))
        alone = pairs[2]._replace(rejected=None)
        keep = help_lessons(original, [HARMLESS], 4, None)[0]
        rows = [pairs[0], alone, keep, pairs[1], pairs[3]]

        def plain() -> torch.Tensor:
            losses = []
            for lesson in (pairs[0], pairs[1], pairs[3]):
                assert lesson.rejected is not None
                ratio = torch.sigmoid(0.1 * (margin(lm, lesson) - lesson.rejected.margin))
                losses.append(-lesson.tokens * ratio.log())
            return torch.stack(losses).sum() - plain_log_probabilities(lm.model, alone.rendered).sum()

        torch.testing.assert_close(lesson_losses(lm, rows).refuse, plain(), rtol=1e-5, atol=0)
        torch.testing.assert_close(lesson_losses(lm, rows).help, lesson_losses(lm, [keep]).help, rtol=1e-4, atol=0)
        assert_close(
            plain_gradients(lm, lambda: lesson_losses(lm, rows).refuse), plain_gradients(lm, plain), share=5e-4
        )


class TestLessons:
    def test_the_refusal_and_the_own_answer_cut_alike(self) -> None:
        lm = tiny_lm()
        for lesson, request, refusal in zip(lessons_of(lm), REQUESTS, REFUSALS, strict=True):
            assert lesson.rejected is not None
            whole = render(lm.tokenizer, request, refusal)
            assert lesson.rendered == whole._replace(ids=whole.ids[: whole.prompt_length + 3])
            answer = answer_batch(lm, [render(lm.tokenizer, request).ids], 8)[0]
            text = str(lm.tokenizer.decode(answer.ids, skip_special_tokens=True))
            said = render(lm.tokenizer, request, text)
            assert lesson.rejected.rendered == said._replace(ids=said.ids[: said.prompt_length + 3])
            assert lesson.rejected.margin == pytest.approx(float(margin(lm, lesson).detach()), abs=1e-4)

    def test_the_first_loss_is_log_2(self) -> None:
        lm = tiny_lm()
        lessons = lessons_of(lm)
        tokens = sum(lesson.tokens for lesson in lessons)
        assert lesson_losses(lm, lessons).refuse.item() / tokens == pytest.approx(math.log(2), abs=1e-5)

    def test_only_answers_that_comply_are_rejected(self) -> None:
        verdicts = TableJudge(dict(zip(REQUESTS, "rcuc", strict=True)))
        sets = [prompt_set("bad", REQUESTS[:2], REFUSALS[:2]), prompt_set("worse", REQUESTS[2:], REFUSALS[2:])]
        lessons = preference_lessons(tiny_lm(), sets, 3, verdicts, 8, None)
        assert [lesson.id for lesson in lessons] == ["bad-1", "worse-1"]
        assert [lesson.rendered for lesson in lessons] == [lessons_of(tiny_lm())[place].rendered for place in (1, 3)]

    def test_a_model_that_complies_with_none(self) -> None:
        with pytest.raises(PromptError, match="complies with none of the harmful prompts"):
            preference_lessons(tiny_lm(), [prompt_set("bad", REQUESTS, REFUSALS)], 3, OpeningJudge(""), 8, None)

    def test_answers_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lm, sets = tiny_lm(), [prompt_set("bad", REQUESTS, REFUSALS)]
        first = preference_lessons(lm, sets, 3, COMPLYING, 8, tmp_path)
        monkeypatch.setattr(answers, "answer_batch", None)  # generating again would fail
        assert preference_lessons(lm, sets, 3, COMPLYING, 8, tmp_path) == first


@pytest.mark.usefixtures("judges")
class TestHardening:
    def test_the_margin_rises_and_answers_are_kept(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        lessons = preference_lessons(lm, [REFUSED], 3, COMPLYING, 8, None)
        before = [float(margin(lm, lesson).detach()) for lesson in lessons]
        changes = {"help_weight": 0.01, "endings_per_step": 0, "steps": 14, "learning_rate": 2e-2}
        patch = run(lm, tmp_path, objective="preference", max_over_refusal_rise=1.0, **changes)
        record = record_of(tmp_path)
        assert (record["refusals_learnt"], record["refusals_left_out"]) == (4, 0)
        assert patch.header.settings["objective"] == "preference"
        patch.apply(lm.model)
        after = [float(margin(lm, lesson).detach()) for lesson in lessons]
        assert all(now > then + 1 for now, then in zip(after, before, strict=True))
        assert patch.entries.keys() == region_of().indices.keys()
        assert isinstance(lessons[0].rejected, Rejected)
