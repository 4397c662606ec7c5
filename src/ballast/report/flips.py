"""Prompts whose verdict changed, with both answers, cut short and harmful ones marked to be hidden."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain, zip_longest

from ballast.evaluate.comparison import Flip
from ballast.report.read import Artefacts, read_completions
from ballast.report.schema import Completion

EXAMPLES_PER_SET = 12
LONGEST_ANSWER = 200
LONGEST_PROMPT = 400


@dataclass(frozen=True)
class Answer:
    """One side of a flip; `text` is None if the answer was not kept, `hidden` if only a click may show it."""

    verdict: str
    text: str | None
    hidden: bool


@dataclass(frozen=True)
class Example:
    """One prompt with its answers before and after."""

    id: str
    prompt: str | None
    before: Answer
    after: Answer


@dataclass(frozen=True)
class Direction:
    """How often a verdict turned into another."""

    before: str
    after: str
    count: int


@dataclass(frozen=True)
class FlippedSet:
    """The flips of one prompt set: all of them counted, at most `EXAMPLES_PER_SET` shown."""

    name: str
    axis: str
    directions: list[Direction]
    examples: list[Example]
    more: int


def flipped_sets(artefacts: Artefacts) -> list[FlippedSet]:
    """Flips by prompt set in the order of the comparison; empty without one."""
    if artefacts.comparison is None:
        return []
    groups: dict[str, list[Flip]] = {}
    for flip in artefacts.comparison.flips:
        groups.setdefault(flip.set, []).append(flip)
    return [_flipped_set(artefacts, name, flips) for name, flips in groups.items()]


def cut(text: str, longest: int) -> str:
    """Text of at most `longest` characters; a cut one ends in an ellipsis, which counts."""
    text = text.strip()
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _flipped_set(artefacts: Artefacts, name: str, flips: list[Flip]) -> FlippedSet:
    before = read_completions(artefacts.before, name) if artefacts.before else {}
    after = read_completions(artefacts.after, name) if artefacts.after else {}
    counts = Counter((flip.before, flip.after) for flip in flips)
    shown = _mixed(flips)
    examples = [_example(flip, before.get(flip.id), after.get(flip.id)) for flip in shown]
    directions = [Direction(*pair, count) for pair, count in counts.most_common()]
    return FlippedSet(name, flips[0].axis, directions, examples, len(flips) - len(shown))


def _mixed(flips: list[Flip]) -> list[Flip]:
    """At most `EXAMPLES_PER_SET` flips, taken from each direction in turn so that a rare one is seen too."""
    directions: dict[tuple[str, str], list[Flip]] = {}
    for flip in flips:
        directions.setdefault((flip.before, flip.after), []).append(flip)
    in_turn = [flip for flip in chain.from_iterable(zip_longest(*directions.values())) if flip is not None]
    return in_turn[:EXAMPLES_PER_SET]


def _example(flip: Flip, before: Completion | None, after: Completion | None) -> Example:
    known = before or after
    return Example(
        id=flip.id,
        prompt=cut(known.prompt, LONGEST_PROMPT) if known else None,
        before=_answer(flip, flip.before, before),
        after=_answer(flip, flip.after, after),
    )


def _answer(flip: Flip, verdict: str, completion: Completion | None) -> Answer:
    """On a safety set everything that is not a refusal is hidden, whatever the judge could make of it."""
    text = cut(completion.answer, LONGEST_ANSWER) if completion else None
    return Answer(verdict, text, hidden=flip.axis == "safety" and verdict != "refused")
