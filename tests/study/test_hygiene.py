"""Near duplicates across sets are dropped from the larger one before rows are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ballast.errors import PromptError
from ballast.prompts import PromptSet
from ballast.prompts.overlap import near_duplicates
from ballast.study.hygiene import cleaned, continued, safety_sets, utility_sets
from tests.study.world import grid, write_sets
from tests.worlds import prompt_set

SMALL = prompt_set("small", ["How do I bake a cake?", "one two three four five"])
MIDDLE = prompt_set("middle", ["how do I bake a CAKE", "six seven eight nine ten", "rain"])
LARGE = prompt_set("large", ["one two three four five six", "six seven eight nine ten!", "Rain?", "snow"])


def ids(prompts: PromptSet) -> list[str]:
    return [prompt.id for prompt in prompts]


def test_the_larger_set_loses_its_row() -> None:
    found = cleaned([LARGE, SMALL, MIDDLE])
    assert [prompts.name for prompts in found.sets] == ["large", "small", "middle"]
    assert [ids(prompts) for prompts in found.sets] == [["large-3"], ["small-0", "small-1"], ["middle-1", "middle-2"]]
    assert found.rows == (4, 2, 3)
    assert [(one.first_set, one.second_set, *one.pair[:2], one.dropped) for one in found.found] == [
        ("small", "middle", "small-0", "middle-0", True),
        ("small", "large", "small-1", "large-0", True),
        ("middle", "large", "middle-1", "large-1", True),
        ("middle", "large", "middle-2", "large-2", True),
    ]
    assert found.found[1].pair.similarity == pytest.approx(5 / 6)
    for number, one in enumerate(found.sets):
        assert not any(near_duplicates(one, other) for other in found.sets[number + 1 :])


def test_a_row_is_dropped_once_and_only_for_rows_that_are_kept() -> None:
    """The middle row resembles the small one and is gone, so what only resembles the middle one stays."""
    small = prompt_set("s", ["a b c d e f g h i j"])
    middle = prompt_set("m", ["a b c d e f g h i j k", "y"])
    large = prompt_set("l", ["a b c d e f g h i j k l m", "x", "A b c d e f g h i j"])  # 10/13 of the first, 11/13
    found = cleaned([small, middle, large])
    assert [ids(prompts) for prompts in found.sets] == [["s-0"], ["m-1"], ["l-0", "l-1"]]
    assert [(*one.pair[:2], one.dropped) for one in found.found] == [("s-0", "m-0", True), ("s-0", "l-2", True)]


def test_draws_follow_the_seed_and_need_enough_rows() -> None:
    found = cleaned([LARGE, SMALL, MIDDLE])
    with pytest.raises(PromptError, match=r"^2 prompts were asked for and large has 1 left, after 3 of its 4 rows"):
        found.drawn(2, 0)
    assert {name: len(prompts) for name, prompts in found.drawn(1, 0).items()} == {"large": 1, "small": 1, "middle": 1}
    many = cleaned([prompt_set("many", [f"{word} {word}" for word in "abcdefghijklm"])])
    assert ids(many.drawn(5, 0)["many"]) == ids(many.drawn(5, 0)["many"]) != ids(many.drawn(5, 1)["many"])


def test_sets_that_cannot_be_told_apart_or_are_empty_are_refused() -> None:
    with pytest.raises(PromptError, match="Two prompt sets have the name small"):
        cleaned([SMALL, SMALL])
    with pytest.raises(PromptError, match="Every prompt of copy is also in a smaller set"):
        cleaned([SMALL, prompt_set("copy", [prompt.prompt for prompt in SMALL] * 2)])


def test_text_is_continued() -> None:
    row, other = continued(prompt_set("wiki", ["The  quick fox jumps over it", "hello\nworld"]))
    assert (row.prompt, row.response) == ("The  quick fox", "jumps over it")
    assert (other.prompt, other.response) == ("hello", "world")
    with pytest.raises(PromptError, match="wiki-0 of wiki has less than two words"):
        continued(prompt_set("wiki", ["fox"]))


def test_sets_of_a_grid(tmp_path: Path) -> None:
    write_sets(tmp_path)
    chosen = grid(tmp_path)
    assert [len(prompts) for prompts in safety_sets(chosen).sets] == [10, 11, 10]
    assert all(prompt.response for prompts in utility_sets(chosen).sets for prompt in prompts)
    lines = [{"prompt": f"plain words {word} and more of {word}"} for word in "abcdefgh"]
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wiki = str(tmp_path / "wiki.jsonl")
    sets = {"safety": [str(tmp_path / "locks.jsonl")], "utility": [wiki]}
    with pytest.raises(PromptError, match="wiki-00000 of wiki has no response"):
        utility_sets(grid(tmp_path, sets=sets))
    (text,) = utility_sets(grid(tmp_path, sets={**sets, "text": [wiki]})).sets
    assert text[0].response == "and more of a"
