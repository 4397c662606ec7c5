"""Equal prompts and near duplicates between sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.errors import PromptError
from ballast.prompts import Prompt, PromptSet
from ballast.prompts.overlap import jaccard, near_duplicates, shared_prompts, without_near_duplicates, word_set


def made(*texts: str) -> PromptSet:
    return PromptSet("made", tuple(Prompt(id=str(number), prompt=text) for number, text in enumerate(texts)))


def test_equal_prompts_are_found_through_case_and_punctuation() -> None:
    assert shared_prompts([made("How, then?", "b")], [made("c", "HOW  then!")]) == [("0", "1")]
    assert shared_prompts([made("a")], [made("b")]) == []


def test_jaccard_by_hand() -> None:
    assert word_set("Don't stop, don't!") == {"dont", "stop"}
    assert jaccard(word_set("a b c"), word_set("b c d e")) == 2 / 5
    assert jaccard(word_set("?"), word_set("")) == 0


def test_near_duplicates_are_listed_with_their_similarity() -> None:
    first = made("How do I bake a cake?", "?!", "one two three four")
    second = made("how do i bake a CAKE", "How do I bake cake", "five", "...")
    assert near_duplicates(first, second) == [("0", "0", 1.0), ("0", "1", 5 / 6), ("1", "3", 1.0)]
    assert near_duplicates(first, second, similarity=0.9) == [("0", "0", 1.0), ("1", "3", 1.0)]
    assert near_duplicates(first, made("nothing alike")) == []


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]), max_size=8), min_size=1, max_size=6),
    st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]), max_size=8), min_size=1, max_size=6),
    st.sampled_from([0.1, 0.5, 2 / 3, 0.7, 0.8, 1.0]),
)
def test_near_duplicates_are_those_of_comparing_every_two(
    first: list[list[str]], second: list[list[str]], similarity: float
) -> None:
    one, other = (made(*(" ".join(words) + "?" for words in rows)) for rows in (first, second))
    expected = []
    for mine in one:
        for theirs in other:
            same = mine.prompt.split("?")[0] == theirs.prompt.split("?")[0]
            alike = 1.0 if same else jaccard(word_set(mine.prompt), word_set(theirs.prompt))
            if alike >= similarity:
                expected.append((mine.id, theirs.id, alike))
    assert near_duplicates(one, other, similarity=similarity) == expected


class TestNearDuplicates:
    OTHERS = (made("Write a poem about rain", "x"), made("How do I bake bread?"))
    PROMPTS = made("How do I bake a cake?", "What is rain?", "how do I bake bread", "y z")  # 0 shares 4 of 7 words

    @pytest.mark.parametrize(("similarity", "kept"), [(0.5, "13"), (4 / 7, "13"), (0.6, "013"), (0.1, "3")])
    def test_are_left_out_from_the_given_similarity_on(self, similarity: float, kept: str) -> None:
        found = without_near_duplicates(self.PROMPTS, self.OTHERS, similarity=similarity)
        assert "".join(row.id for row in found) == kept
        assert found.name == "made"

    def test_nothing_left(self) -> None:
        with pytest.raises(PromptError, match=r"^Every prompt of made resembles one of the other sets"):
            without_near_duplicates(made("x"), self.OTHERS)
