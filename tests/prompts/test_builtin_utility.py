"""The built-in sets that measure utility keep what their README promises."""

from collections import Counter
from itertools import combinations

import pytest

from ballast.errors import PromptError
from ballast.prompts import load_prompts
from ballast.prompts.overlap import jaccard, word_set

ANSWERS = load_prompts("builtin/answers")
CHOICES = load_prompts("builtin/choices")


def test_counts_and_fields() -> None:
    assert (len(ANSWERS), len(CHOICES)) == (80, 100)
    assert [prompt.id for prompt in ANSWERS] == [f"answer-{number:03d}" for number in range(1, 81)]
    assert [prompt.id for prompt in CHOICES] == [f"choice-{number:03d}" for number in range(1, 101)]
    assert set(Counter(prompt.category for prompt in ANSWERS).values()) == {10}
    assert min(Counter(prompt.category for prompt in CHOICES).values()) >= 15
    for prompt in [*ANSWERS, *CHOICES]:
        assert (prompt.source, prompt.split, prompt.pair) == ("ballast built-in", None, None)
        assert prompt.prompt == prompt.prompt.strip()
        assert len(prompt.prompt.split()) <= 25


def test_answers_are_short_texts() -> None:
    for prompt in ANSWERS:
        assert prompt.choices is None
        assert prompt.response is not None
        assert 15 <= len(prompt.response.split()) <= 60, prompt.id
        assert prompt.response == prompt.response.strip()


def test_four_choices_and_no_favoured_position() -> None:
    positions: Counter[int] = Counter()
    for prompt in CHOICES:
        assert prompt.choices is not None
        assert len(prompt.choices) == 4
        assert prompt.response is not None
        positions[prompt.choices.index(prompt.response)] += 1
        assert all(0 < len(choice.split()) <= 5 and choice == choice.strip() for choice in prompt.choices)
        # scores leave out where an answer ends, so no choice may begin another
        assert not any(two.startswith(one) for one in prompt.choices for two in prompt.choices if one != two), prompt.id
    assert positions == dict.fromkeys(range(4), 25)


def test_the_right_choice_is_not_given_away_by_its_length() -> None:
    longest = sum(
        len(prompt.response or "") > max(len(choice) for choice in prompt.choices or () if choice != prompt.response)
        for prompt in CHOICES
    )
    assert longest <= 35


def test_no_near_duplicates_among_the_built_in_sets() -> None:
    mine = [(prompt.id, word_set(prompt.prompt)) for prompt in [*ANSWERS, *CHOICES]]
    others = [
        (prompt.id, word_set(prompt.prompt))
        for kind in ("harmful", "twins", "ordinary")
        for prompt in load_prompts(f"builtin/{kind}")
    ]
    pairs = [*combinations(mine, 2), *((first, second) for first in mine for second in others)]
    assert [(one[0], two[0]) for one, two in pairs if jaccard(one[1], two[1]) >= 0.6] == []


@pytest.mark.parametrize("name", ["builtin/answers/test", "builtin/choices/tune", "builtin/choice"])
def test_they_have_no_splits(name: str) -> None:
    with pytest.raises(PromptError, match=r"did you mean .*builtin/"):
        load_prompts(name)
