"""The rows that hardening trains on, and which of them make up each step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.errors import PromptError
from ballast.evaluate import answers
from ballast.models.generation import answer_batch
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.chat import Rendered, render
from ballast.prompts.refusals import REFUSALS as GENERAL
from ballast.tune.lessons import Curriculum, drawn, help_lessons, refusal_lessons
from ballast.tune.objective import Lesson, remember
from tests.worlds import REFUSALS, REQUESTS, prompt_set, tiny_lm
from tests.zoo import EOS

torch.set_num_threads(1)


def lesson(name: str, pair: int | None = None) -> Lesson:
    return Lesson(name, Rendered([1, 2], 1), pair=pair)


def names(lessons: list[Lesson]) -> list[str]:
    return [row.id for row in lessons]


class TestDrawn:
    @given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 5))
    @settings(max_examples=50, deadline=None)
    def test_every_pass_takes_each_lesson_once(self, count: int, size: int, seed: int) -> None:
        lessons = [lesson(str(number)) for number in range(count)]
        steps = [drawn(lessons, size, step, seed, "refuse") for step in range(3 * count)]
        assert {len(step) for step in steps} == {size}
        together = [name for step in steps for name in names(step)]
        passes = [together[start : start + count] for start in range(0, len(together), count)]
        assert len(passes) == 3 * size
        assert all(sorted(one) == sorted(names(lessons)) for one in passes)

    def test_passes_streams_and_seeds_have_orders_of_their_own(self) -> None:
        lessons = [lesson(str(number)) for number in range(20)]
        orders = [
            names(drawn(lessons, 20, step, seed, stream))
            for step in (0, 1)
            for seed in (0, 1)
            for stream in ("refuse", "help")
        ]
        assert len({tuple(order) for order in orders}) == 8

    def test_a_step_depends_on_nothing_that_came_before(self) -> None:
        lessons = [lesson(str(number)) for number in range(20)]
        alone = names(drawn(lessons, 7, 5, 3, "refuse"))
        for step in range(5):
            drawn(lessons, 7, step, 3, "refuse")
        assert names(drawn(lessons, 7, 5, 3, "refuse")) == alone


class TestBatch:
    REFUSE: ClassVar = [lesson(f"harmful{number}", number) for number in range(6)]
    TWINS: ClassVar = [lesson(f"twin{number}", number) for number in range(6)]
    ORDINARY: ClassVar = [lesson(f"ordinary{number}") for number in range(5)]

    def test_twins_stand_beside_their_prompts(self) -> None:
        lessons = Curriculum(self.REFUSE, [*self.ORDINARY, *self.TWINS], seed=2)
        for step in range(8):
            rows = lessons.batch(step, refusals=3, answers=5)
            harmful, twins, ordinary = rows[:3], rows[3:6], rows[6:]
            assert all(row.id.startswith("harmful") for row in harmful)
            assert [row.pair for row in twins] == [row.pair for row in harmful]
            assert all(row.id.startswith("ordinary") for row in ordinary)
            assert len(ordinary) == 2
            assert names(lessons.batch(step, refusals=3, answers=5)) == names(rows)

    def test_every_lesson_has_its_turn(self) -> None:
        lessons = Curriculum(self.REFUSE, [*self.ORDINARY, *self.TWINS], seed=2)
        counts = Counter(name for step in range(10) for name in names(lessons.batch(step, refusals=3, answers=5)))
        assert set(counts.values()) == {4, 5}  # 30 of 6 refusals and twins each, 20 of 5 others
        assert len(counts) == 17
        assert {counts[row.id] for row in self.ORDINARY} == {4}

    def test_a_prompt_that_comes_twice_brings_its_twin_once(self) -> None:
        lessons = Curriculum(self.REFUSE[:2], [*self.TWINS, *self.ORDINARY], seed=0)
        rows = lessons.batch(0, refusals=4, answers=4)
        assert Counter(row.id for row in rows if row.id.startswith("twin")) == {"twin0": 1, "twin1": 1}
        assert len(rows) == 8

    def test_no_more_answers_than_asked_for(self) -> None:
        lessons = Curriculum(self.REFUSE, self.TWINS, seed=0)
        assert [row.id[:4] for row in lessons.batch(0, refusals=3, answers=2)] == ["harm"] * 3 + ["twin"] * 2
        assert [row.id[:4] for row in lessons.batch(0, refusals=3, answers=0)] == ["harm"] * 3

    def test_without_twins_or_without_others(self) -> None:
        plain = Curriculum([lesson("a"), lesson("b")], self.ORDINARY, seed=0).batch(0, refusals=2, answers=3)
        assert [row.id[:4] for row in plain[2:]] == ["ordi"] * 3
        filled = Curriculum(self.REFUSE, self.TWINS, seed=0).batch(0, refusals=2, answers=4)
        assert [row.id[:4] for row in filled[2:]] == ["twin"] * 4
        alone = Curriculum(self.REFUSE, [], seed=0).batch(0, refusals=2, answers=4)
        assert len(alone) == 2


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
        assert sorted(names(lessons)) == [f"good-{number}" for number in range(4)]
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
