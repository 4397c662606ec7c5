"""The rows that hardening trains on, and which of them make up each step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ballast.errors import PromptError
from ballast.evaluate import answers
from ballast.models.generation import Answer, answer_batch
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import render
from ballast.prompts.refusals import REFUSALS as GENERAL
from ballast.tune.lessons import closing_lessons, continuing_lessons, help_lessons, refusal_lessons
from ballast.tune.objective import Lesson, remember
from tests.worlds import REFUSALS, REQUESTS, prompt_set, tiny_lm
from tests.zoo import EOS

torch.set_num_threads(1)


class TestRefusals:
    def test_are_the_responses(self) -> None:
        lm = tiny_lm()
        lessons = refusal_lessons(lm, [prompt_set("bad", REQUESTS, REFUSALS)], tokens=100)
        assert [row.rendered for row in lessons] == [
            render(lm.tokenizer, request, refusal) for request, refusal in zip(REQUESTS, REFUSALS, strict=True)
        ]
        assert all(row.rendered.ids[-1] == EOS and row.teacher is None for row in lessons)

    def test_are_cut(self) -> None:
        lm = tiny_lm()
        whole = refusal_lessons(lm, [prompt_set("bad", REQUESTS, REFUSALS)], tokens=100)
        cut = refusal_lessons(lm, [prompt_set("bad", REQUESTS, REFUSALS)], tokens=5)
        for long, short in zip(whole, cut, strict=True):
            assert short.tokens == min(5, long.tokens)
            assert short.rendered.ids == long.rendered.ids[: long.rendered.prompt_length + 5]
            assert short.rendered.prompt_length == long.rendered.prompt_length

    def test_keep_the_number_of_the_pair(self) -> None:
        prompts = PromptSet("bad", (Prompt(id="a", prompt="How?", response="No.", pair=7),))
        assert refusal_lessons(tiny_lm(), [prompts], tokens=5)[0].pair == 7

    def test_a_prompt_without_response_gets_a_general_refusal_in_turn(self) -> None:
        lm = tiny_lm()
        sets = [prompt_set("bad", ["One", "Two"], ["No.", None]), prompt_set("worse", ["Three", "Four"])]
        lessons = refusal_lessons(lm, sets, tokens=100)
        expected = [("One", "No."), ("Two", GENERAL[1]), ("Three", GENERAL[2]), ("Four", GENERAL[0])]
        assert [row.rendered for row in lessons] == [render(lm.tokenizer, *texts) for texts in expected]

    def test_a_prompt_longer_than_the_context(self) -> None:
        with pytest.raises(PromptError, match="'bad-0' takes"):
            refusal_lessons(tiny_lm(), [prompt_set("bad", ["x" * 600], ["No."])], tokens=5)


class TestHelp:
    def test_are_the_models_own_answers(self) -> None:
        """References that a set brings are not used."""
        lm = tiny_lm()
        lessons = help_lessons(lm, [prompt_set("good", REQUESTS, REFUSALS)], 6, None)
        assert sorted(row.id for row in lessons) == [f"good-{number}" for number in range(4)]
        for row in lessons:
            request = REQUESTS[int(row.id[-1])]
            asked = render(lm.tokenizer, request).ids
            answer = answer_batch(lm, [asked], 6)[0]
            text = str(lm.tokenizer.decode(answer.ids, skip_special_tokens=True))
            whole = render(lm.tokenizer, request, text)
            assert row.rendered == (whole.ids[: len(asked) + len(answer.ids)], len(asked))
            assert 1 <= row.tokens <= 6

    def test_remember_the_model_as_it_is(self) -> None:
        lm = tiny_lm()
        for row in help_lessons(lm, [prompt_set("good", REQUESTS)], 6, None):
            (expected,) = remember(lm, [row.rendered])
            assert row.teacher is not None
            assert row.teacher.log_probabilities.shape[0] == row.tokens
            torch.testing.assert_close(row.teacher.log_probabilities, expected.log_probabilities, rtol=0, atol=1e-4)

    def test_several_sets_and_pairs(self) -> None:
        twins = PromptSet("twins", (Prompt(id="t", prompt="Why?", pair=7),))
        lessons = help_lessons(tiny_lm(), [prompt_set("good", REQUESTS), twins], 4, None)
        assert {row.id: row.pair for row in lessons if row.pair is not None} == {"t": 7}
        assert len(lessons) == 5

    def test_answers_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = tiny_lm()
        sets = [prompt_set("good", REQUESTS), prompt_set("builtin/twins/tune", ["Why?"])]
        first = help_lessons(lm, sets, 6, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["builtin-twins-tune.jsonl", "good.jsonl"]
        monkeypatch.setattr(answers, "answer_batch", None)  # generating again would fail
        again = help_lessons(lm, sets, 6, tmp_path)
        assert [(row.id, row.rendered) for row in again] == [(row.id, row.rendered) for row in first]


class TestClosing:
    def test_only_the_end_of_the_turn_counts(self) -> None:
        lm = tiny_lm()
        lessons = closing_lessons(lm, [prompt_set("bad", REQUESTS, REFUSALS)])
        for row, request, refusal in zip(lessons, REQUESTS, REFUSALS, strict=True):
            whole = render(lm.tokenizer, request, refusal)
            assert row.rendered == (whole.ids, len(whole.ids) - 1)
            assert whole.ids[-1] == EOS
            assert row.teacher is None

    def test_prompts_without_a_refusal_of_their_own_teach_none(self) -> None:
        assert [row.id for row in closing_lessons(tiny_lm(), [prompt_set("bad", ["a", "b"], [None, "No."])])] == [
            "bad-1"
        ]

    def test_a_blank_response_is_none(self) -> None:
        """It would teach that a turn ends at once."""
        blank = [prompt_set("bad", ["a", "b", "c"], ["", " \n", "No."])]
        assert [row.id for row in closing_lessons(tiny_lm(), blank)] == ["bad-2"]
        assert [row.response for row in blank[0]] == [None, None, "No."]

    def test_a_format_without_an_end(self) -> None:
        """Where nothing closes an answer there is nothing to learn; the last letter is not taken for an end."""
        lm = tiny_lm()
        lm.tokenizer.chat_template = (
            "{{ messages[0]['content'] }}>{% if messages[1:] %}{{ messages[1]['content'] }}{% endif %}"
        )
        assert closing_lessons(lm, [prompt_set("bad", REQUESTS, REFUSALS)]) == []


class TestContinuing:
    ANSWER = "So. It is! e.g. this"

    def lessons(self, monkeypatch: pytest.MonkeyPatch, limit: int = 9) -> list[Lesson]:
        lm = tiny_lm()
        ids = lm.tokenizer(self.ANSWER)["input_ids"]
        monkeypatch.setattr(answers, "answer_batch", lambda _, rows, __: [Answer(ids, False) for _ in rows])
        return continuing_lessons(lm, [prompt_set("good", REQUESTS)], limit, 20, 0, None)

    def test_the_token_behind_each_end_of_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = tiny_lm()
        found = self.lessons(monkeypatch)
        ends = ["So.", "So. It is!", "So. It is! e.", "So. It is! e.g."]
        assert len(found) == len(ends) * len(REQUESTS)
        for number, request in enumerate(REQUESTS):
            rows = [row for row in found if row.id.startswith(f"continued-{number}-")]
            whole = render(lm.tokenizer, request, self.ANSWER)
            expected = [whole.prompt_length + len(end) for end in ends]  # one token per letter
            assert [row.rendered.prompt_length for row in rows] == expected
            assert [row.rendered.ids for row in rows] == [whole.ids[: place + 1] for place in expected]
            assert all(row.tokens == 1 for row in rows)

    def test_keep_what_the_original_thinks_comes_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = tiny_lm()
        for row in self.lessons(monkeypatch)[:3]:
            logits = lm.model(torch.tensor([row.rendered.ids[: row.rendered.prompt_length]])).logits[0, -1]
            expected = logits.detach().log_softmax(0).topk(64)
            assert row.teacher is not None
            assert row.teacher.tokens.tolist() == [expected.indices.tolist()]
            torch.testing.assert_close(row.teacher.log_probabilities[0], expected.values, rtol=0, atol=1e-4)

    def test_a_draw_of_the_prompts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert len({row.id.rpartition("-")[0] for row in self.lessons(monkeypatch, limit=2)}) == 2
