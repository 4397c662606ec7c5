"""What a validation says, and what it does not say, in sentences."""

from __future__ import annotations

from typing import Any, NamedTuple

from ballast.report import formats, words
from ballast.validate import DoseEffect, Validation
from ballast.validate.findings import LEVEL, families

FEWEST_PROMPTS = 6  # below, no exact McNemar p is below 0.05
TITLES = {"ablate": "weights set to 0", "noise": "noise", "scale": "weights multiplied", "transplant": "transplant"}
CLAIMS = {
    "necessity": "{model} needs the region for its refusals",
    "sufficiency": "the region brings refusals into {other}",
}


class Verdict(NamedTuple):
    """A verdict in one sentence."""

    shown: bool
    sentence: str


def heading(validation: Validation) -> dict[str, Any]:
    """Title, first sentences and how it was measured."""
    settings = validation.settings
    return {
        "title": f"Validation of a region of {validation.model}",
        "opening": opening(validation),
        "method": [words.answers(settings["max_new_tokens"], settings["judge"])],
    }


def opening(validation: Validation) -> list[str]:
    """The sentences that open the page."""
    first = (
        f"Ballast disturbed a region of {formats.integer(validation.weights)} weights of {validation.model} in memory, "
        f"and {_random_regions(validation)} random regions with as many weights in every matrix."
    )
    last = "A test is one way of disturbing, on one set of harmful prompts."
    return [first, *(_summary(validation, question) for question in _questions(validation)), last]


def family_title(dose: DoseEffect) -> str:
    """The heading of an intervention and the question that it asks."""
    return f"{dose.question.capitalize()}: {TITLES[dose.intervention]}"


def verdicts(validation: Validation) -> list[Verdict]:
    """The verdicts with their numbers, as the validation wrote them."""
    return [Verdict(one.shown, one.sentence) for one in validation.findings]


def limits(validation: Validation) -> list[str]:
    """What may and may not be concluded from these numbers."""
    said = [
        f"Shown means that, for one and the same dose, p after correction is at most {LEVEL:g} and ordinary answers "
        f"lose at most {validation.settings['utility_margin']:g} nats per token more than with random regions, at the "
        "upper end of the 95 % interval. Anything else is not shown.",
    ]
    if not all(one.shown for one in validation.findings):
        said.append(
            "Not shown is not shown to be absent: look at the interval of the specific effect and at the number of "
            "prompts."
        )
    said += _too_few(validation)
    if any(one.question == "necessity" for one in validation.findings):
        said.append(
            "Necessity says that these weights are used as they are. It does not say that safety is stored there, nor "
            "that other weights could not stand in for them."
        )
    if any(one.question == "sufficiency" for one in validation.findings):
        said.append("Sufficiency depends on the other model: it can fail because the rest of that model differs.")
    said.append(
        "Over-refusal is no part of a verdict. If harmless prompts are refused less as well, what was found is "
        "refusing, not telling harm from harmlessness."
    )
    return [*said, _held_out(validation), "No answer of a disturbed model was kept, so the page has none."]


def _questions(validation: Validation) -> list[str]:
    return list(dict.fromkeys(one.question for one in validation.findings))


def _summary(validation: Validation, question: str) -> str:
    """How many verdicts on a question are positive; each is about one way of disturbing and one set of prompts."""
    shown = [one.shown for one in validation.findings if one.question == question]
    claim = CLAIMS[question].format(model=validation.model, other=validation.other)
    count = f"{sum(shown)} of" if any(shown) else "none of"
    return f"That {claim} is shown by {count} {len(shown)} {'test' if len(shown) == 1 else 'tests'}."


def _random_regions(validation: Validation) -> str:
    return formats.integer(len(validation.effects[0].safety[0].random))


def _too_few(validation: Validation) -> list[str]:
    """Numbers of random regions and of prompts with which nothing can be shown."""
    said = []
    for family in families(validation.effects):
        smallest = len(family) / (1 + len(family[0].safety[0].random))  # Holm's smallest, of the smallest rank p
        if smallest > LEVEL:
            said.append(
                f"With {_random_regions(validation)} random regions and {len(family)} doses of "
                f"{family[0].intervention} no corrected p is below {formats.p_value(smallest)}, so nothing can be "
                "shown; more random regions can be added."
            )
    few = sorted({effect.set for dose in validation.effects for effect in dose.safety if effect.n < FEWEST_PROMPTS})
    if few:
        said.append(
            f"{', '.join(few)} has fewer than {FEWEST_PROMPTS} scored prompts, with which the paired test cannot show "
            "anything."
        )
    return list(dict.fromkeys(said))


def _held_out(validation: Validation) -> str:
    if validation.held_out:
        return "The region was located on other prompts than these; paraphrases are not looked for."
    sets = f" ({', '.join(validation.unknown)})" if validation.unknown else ""
    return (
        f"It is not known which prompts the region was located on{sets}, so these may be among them; name them with "
        "--located-on."
    )
