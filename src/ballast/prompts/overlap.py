"""Prompts that two groups of sets share: equal ones, and near duplicates."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ballast.errors import PromptError
from ballast.prompts.prompt_set import PromptSet

ROUNDING = 1e-9  # of a similarity times a number of words


def shared_prompts(sets: Iterable[PromptSet], others: Iterable[PromptSet]) -> list[tuple[str, str]]:
    """Pairs of ids whose prompts are equal up to case, white space and punctuation, between two groups of sets."""
    known = {_normalised(prompt.prompt): prompt.id for group in sets for prompt in group}
    return [
        (known[key], prompt.id) for group in others for prompt in group if (key := _normalised(prompt.prompt)) in known
    ]


class NearDuplicate(NamedTuple):
    """Two prompts that are nearly the same.

    Attributes:
        first: Id of the one.
        second: Id of the other.
        similarity: Jaccard index of their words; 1 if they are equal up to case, white space and punctuation.
    """

    first: str
    second: str
    similarity: float


def near_duplicates(first: PromptSet, second: PromptSet, *, similarity: float = 0.8) -> list[NearDuplicate]:
    """Every pair of prompts of two sets that are equal, or whose words are nearly the same; paraphrases escape this.

    Args:
        first: One set.
        second: Another.
        similarity: Jaccard index of the two sets of words from which on prompts are near duplicates, in (0, 1].
    """
    known = [(prompt.id, _normalised(prompt.prompt), word_set(prompt.prompt)) for prompt in second]
    order = Counter(word for _, _, words in known for word in words)
    places: dict[str, list[int]] = defaultdict(list)  # of the prompts of `second`, by what a near duplicate must share
    for place, (_, text, words) in enumerate(known):
        for mark in (text + "\n", *_rarest(words, order, similarity)):
            places[mark].append(place)
    found = []
    for prompt in first:
        normalised, words = _normalised(prompt.prompt), word_set(prompt.prompt)
        marks = (normalised + "\n", *_rarest(words, order, similarity))
        for place in sorted({place for mark in marks for place in places.get(mark, ())}):
            other, text, others = known[place]
            alike = 1.0 if text == normalised else jaccard(words, others)
            if alike >= similarity:
                found.append(NearDuplicate(prompt.id, other, alike))
    return found


def _rarest(words: frozenset[str], order: Counter[str], similarity: float) -> list[str]:
    """The words of which two sets share at least one if their Jaccard index is `similarity`.

    Sets A and B with |A & B| / |A | B| >= s share at least s |A| words. In one order of all words, the first of them is
    then among the first |A| - s |A| + 1 of A, and likewise of B (Bayardo et al., WWW 2007). Rare words first, so that
    few prompts have them.
    """
    needed = math.ceil(similarity * len(words) - ROUNDING)
    return sorted(words, key=lambda word: (order[word], word))[: len(words) - needed + 1]


def require_disjoint(training: Iterable[PromptSet], others: Iterable[PromptSet]) -> None:
    """Refuse to tune on prompts that are chosen or measured by.

    Raises:
        PromptError: A prompt is in both groups.
    """
    shared = shared_prompts(training, others)
    if shared:
        raise PromptError(
            f"{len(shared)} prompts are both tuned on and measured ({shared[0][1]} is {shared[0][0]}); "
            "choose sets without common prompts."
        )


def without_near_duplicates(prompts: PromptSet, others: Sequence[PromptSet], *, similarity: float = 0.5) -> PromptSet:
    """The prompts that resemble no prompt of other sets.

    Use it to tune on one public set and measure on another: many of them share prompts.

    Args:
        prompts: The set to thin out.
        others: Sets that it must share nothing with.
        similarity: Jaccard index of the two sets of words, in (0, 1]; from here on two prompts are near duplicates.

    Raises:
        PromptError: No prompt is left.
    """
    known = [word_set(prompt.prompt) for group in others for prompt in group]
    kept = tuple(
        prompt
        for prompt in prompts
        if all(jaccard(words, other) < similarity for words in [word_set(prompt.prompt)] for other in known)
    )
    if not kept:
        raise PromptError(f"Every prompt of {prompts.name} resembles one of the other sets; choose another set.")
    return replace(prompts, prompts=kept)


def word_set(text: str) -> frozenset[str]:
    """The words of a text in lower case, without punctuation: "Don't stop!" gives dont and stop."""
    return frozenset(re.sub(r"[^\w\s]", "", text.lower()).split())


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared members over all members; 0 for two empty sets."""
    together = len(first | second)
    return len(first & second) / together if together else 0.0


def _normalised(text: str) -> str:
    return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())
