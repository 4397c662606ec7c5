"""Which rows make up each step."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.prompts.chat import Rendered
from ballast.tune import HardenSettings
from ballast.tune.curriculum import Curriculum, curriculum, drawn
from ballast.tune.objective import Lesson
from tests.worlds import REFUSALS, REQUESTS, prompt_set, tiny_lm


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


class TestEndings:
    CLOSE: ClassVar = [lesson(f"close{number}") for number in range(5)]
    ON: ClassVar = [lesson(f"on{number}") for number in range(7)]

    def test_as_many_of_both(self) -> None:
        lessons = Curriculum([lesson("a")], [lesson("b")], 1, self.CLOSE, self.ON)
        seen: Counter[str] = Counter()
        for step in range(35):
            rows = names(lessons.batch(step, 1, 1, 2))
            assert rows[:2] == ["a", "b"]
            assert [name.rstrip("0123456789") for name in rows[2:]] == ["close"] * 2 + ["on"] * 2
            assert rows == names(lessons.batch(step, 1, 1, 2))
            seen.update(rows[2:])
        assert {seen[row.id] for row in self.CLOSE} == {14}
        assert {seen[row.id] for row in self.ON} == {10}

    def test_without_ends_to_learn_there_are_none_to_keep(self) -> None:
        assert names(Curriculum([lesson("a")], [], 1, (), self.ON).batch(0, 1, 0, 2)) == ["a"]
        assert names(Curriculum([lesson("a")], [], 1, self.CLOSE[:1]).batch(0, 1, 0, 2)) == ["a", "close0", "close0"]

    def test_none_are_made_when_none_are_asked_for(self) -> None:
        lm, refusals, harmless = tiny_lm(), [prompt_set("bad", REQUESTS, REFUSALS)], [prompt_set("good", REQUESTS)]
        chosen = HardenSettings(answer_tokens=2, endings_per_step=0)
        without = curriculum(lm, refusals, harmless, chosen, None)
        assert (without.close, without.go_on) == ([], [])
        made = curriculum(lm, refusals, harmless, HardenSettings(answer_tokens=2), None)
        assert len(made.close) == len(REQUESTS)
        assert len(made.help) == len(REQUESTS)
