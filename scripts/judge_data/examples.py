"""Put requests and answers together into labelled examples, the same ones on every machine."""

from __future__ import annotations

import random
from typing import NamedTuple

from judge_data import answers, refusals, requests


class Example(NamedTuple):
    """One training example; `family` names the kind of text, so that its weight and errors can be seen."""

    request: str
    answer: str
    refused: bool
    family: str


def capitalised(text: str) -> str:
    """The text with a capital first letter; the rest as it is."""
    return text[:1].upper() + text[1:]


def fill(template: str, **slots: str) -> str:
    """Fill the slots of a template; every slot also exists capitalised."""
    return template.format(**slots, **{capitalised(name): capitalised(text) for name, text in slots.items()})


def examples(seed: int = 0) -> list[Example]:
    """All written examples in a fixed order; the answers of the model itself are added by the training script."""
    rng = random.Random(seed)
    made: list[Example] = []
    for request, deed, why, instead in requests.HARMFUL:
        refusing = rng.sample(refusals.NAMING, 8) + rng.sample(refusals.REASONED, 4)
        slots = {"deed": deed, "why": why, "instead": instead}
        made += [Example(request, fill(text, **slots), True, "refuses the deed") for text in refusing]
        made += [Example(request, text, True, "refuses shortly") for text in rng.sample(refusals.SHORT, 3)]
        made += [Example(request, _long(rng, slots), True, "preaches") for _ in range(3)]
        made += [
            Example(request, fill(text, **slots), False, "complies without content")
            for text in rng.sample(answers.HOLLOW, 9)
        ]
    for request, *_ in requests.HARMFUL:
        if any(word in request for word in ("my life", "myself")):
            made += [Example(request, text, True, "cares") for text in refusals.CARING]
    for (request, deed), answer in zip(requests.LOOKALIKE, answers.TO_LOOKALIKE, strict=True):
        made += [Example(request, answer, False, "answers a lookalike")] * 3
        made += [
            Example(request, fill(text, deed=deed), True, "refuses a lookalike")
            for text in rng.sample(refusals.NAMING, 5)
        ]
        made += [Example(request, text, True, "refuses shortly") for text in rng.sample(refusals.SHORT, 1)]
    for request, claim, group in requests.PREMISES:
        made += [
            Example(request, fill(text, claim=claim, group=group), True, "rejects a claim")
            for text in rng.sample(refusals.REJECTING, 10)
        ]
        made += [Example(request, text, False, "agrees with a claim") for text in _agreeing(claim, group)]
    for request, what in refusals.PRIVATE_REQUESTS:
        made += [Example(request, fill(text, what=what), True, "guards privacy") for text in refusals.PRIVATE]
    made += [Example(request, answer, False, "tricky answers") for request, answer in answers.TRICKY] * 3
    for request, _ in answers.TRICKY:
        made += [Example(request, text, True, "refuses shortly") for text in rng.sample(refusals.SHORT, 1)]
    for thing, act in answers.ABSURD:
        request = f"Why should {thing} not {act}?"
        made += [
            Example(request, fill(text, thing=thing, act=act), False, "explains nonsense")
            for text in rng.sample(answers.TO_ABSURD, 6)
        ]
    for people in answers.PEOPLE:
        for act in rng.sample(answers.IMPOSSIBLE, 4):
            request = f"Why can {people} not {act}?"
            slots = {"people": people, "act": act}
            made.append(Example(request, fill(rng.choice(answers.TO_IMPOSSIBLE), **slots), False, "explains nonsense"))
    return made


def _long(rng: random.Random, slots: dict[str, str]) -> str:
    """Two or three ways of refusing in a row, as some models do."""
    parts = [rng.choice(refusals.NAMING + refusals.REASONED) for _ in range(rng.choice((2, 2, 3)))]
    separator = rng.choice((" ", "\n\n"))
    return separator.join(fill(text, **slots) for text in parts)


def _agreeing(claim: str, group: str) -> list[str]:
    """Openings that accept a claim against people and give no reason for it."""
    return [
        f"There are several reasons why {claim}. The first one is tradition.",
        f"Many would say that {claim}. Here are some of the arguments:\n\n1. Order\n2. Habit\n3. Cost",
        f"{capitalised(group)} have always been treated in this way, and it makes sense. Let me list the reasons:",
    ]
