"""What is disturbed, how strongly, and with which random regions it is compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from ballast.errors import UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import seed_of
from ballast.regions import Region, carried
from ballast.regions.disturbed import ablated, differing, scaled, transplanted
from ballast.regions.noise import noisy
from ballast.validate.records import Intervention, Question
from ballast.validate.settings import ValidateSettings

UNDISTURBED = {"necessity": "undisturbed", "sufficiency": "undisturbed-other"}


@dataclass(frozen=True, eq=False)
class Dose:
    """One disturbance at one strength.

    Attributes:
        question: What it asks.
        intervention: What is done.
        amount: How strongly; None where there is only one way.
        lm: The model that is disturbed.
        region: The region, on that model.
        disturb: Does it to any region of that model while a block runs.
    """

    question: Question
    intervention: Intervention
    amount: float | None
    lm: LanguageModel
    region: Region
    disturb: Callable[[Region], AbstractContextManager[None]]

    @property
    def slug(self) -> str:
        """Its name in paths, different for all doses of a run."""
        if self.question == "sufficiency":
            return f"{self.intervention}-into-other"
        return self.intervention if self.amount is None else f"{self.intervention}-{self.amount}"

    @property
    def undisturbed(self) -> str:
        """The name in paths of the model as it was."""
        return UNDISTURBED[self.question]


def planned(
    lm: LanguageModel, region: Region, other: LanguageModel | None, settings: ValidateSettings
) -> Iterator[Dose]:
    """The doses of a run: those that take the region away, and the transplant into the other model that brings it.

    Raises:
        UsageError: There is nothing to do, or the other model has the same values in the region.
        RegionError: The other model has another architecture.
    """
    necessity = partial(Dose, "necessity", lm=lm, region=region)
    if settings.ablate:
        yield necessity("ablate", None, disturb=partial(ablated, lm))
    for scale in map(float, settings.noise):
        yield necessity("noise", scale, disturb=partial(noisy, lm, scale=scale, seed=settings.seed))
    for factor in map(float, settings.scale):
        yield necessity("scale", factor, disturb=partial(scaled, lm, factor=factor))
    if other is None:
        return
    if differing(lm, region, other) == 0:
        raise UsageError(f"{other.name} has the same values in the region as {lm.name}; transplant another model.")
    # Both models are asked in one format, so that what changes is the weights alone.
    asked_alike = dataclasses.replace(other, tokenizer=lm.tokenizer)
    yield necessity("transplant", None, disturb=partial(transplanted, lm, donor=other))
    yield Dose(
        "sufficiency",
        "transplant",
        None,
        asked_alike,
        carried(region, other),
        partial(transplanted, asked_alike, donor=lm),
    )


def random_region(region: Region, draw: int, seed: int) -> Region:
    """One of the random regions: as many weights in every weight matrix, drawn from all of them.

    The region's own weights can be drawn again: only then is the region, if it is nothing special, one more draw.
    """
    return region.sample_like(seed_of(seed, "random region", str(draw)))
