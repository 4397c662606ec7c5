"""How a region was found, read from its own record, so that it can be found again on other prompts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

from ballast.errors import PromptError, RegionError
from ballast.locate.registry import METHODS, Method, get_method
from ballast.locate.scoring import locate
from ballast.models import LanguageModel
from ballast.prompts import PromptSet, load_prompts
from ballast.regions import Region
from ballast.regions.metadata import PromptSource, RegionMetadata
from ballast.regions.selection import Scope
from ballast.regions.threshold import Direction
from ballast.regions.unit_selection import UnitScope


@dataclass(frozen=True)
class Recipe:
    """Everything but the prompts.

    Attributes:
        method: With its settings.
        seed: As for `locate`.
        batch_size: As for `locate`.
        fraction: As for `Scores.select`.
        scope: As for `Scores.select`.
        direction: As for `Scores.select`.
        layers: As for `Scores.select`.
    """

    method: Method
    seed: int
    batch_size: int
    fraction: str | None
    scope: Scope | UnitScope | None
    direction: Direction
    layers: tuple[int, ...] | None

    @classmethod
    def of(cls, metadata: RegionMetadata) -> Recipe:
        """Read how a region was found.

        Raises:
            RegionError: It was made from other regions, or by a method that this version does not have.
        """
        if metadata.selection is None or metadata.parents:
            raise RegionError(
                f"A region made from others ({metadata.method}) cannot be located again on halves of its prompts; "
                "give the region as it was located."
            )
        if metadata.method not in METHODS:
            raise RegionError(f"There is no method {metadata.method!r} to locate with; give a region that locate made.")
        fields = {field.name for field in dataclasses.fields(METHODS[metadata.method])}
        settings = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in metadata.settings.items()
            if name in fields
        }
        selection = metadata.selection
        return cls(
            method=get_method(metadata.method, **settings),
            seed=metadata.seed,
            batch_size=cast("int", metadata.settings["batch_size"]),
            fraction=selection.fraction,
            scope=None if selection.scope == "own" else selection.scope,
            direction=selection.direction,
            layers=selection.layers,
        )

    def located(self, lm: LanguageModel, prompts: PromptSet) -> Region:
        """Find a region in the same way on other prompts.

        Raises:
            BallastError: As `locate` and `select` raise it.
        """
        scores = locate(lm, prompts, self.method, seed=self.seed, batch_size=self.batch_size)
        return scores.select(self.fraction, scope=self.scope, direction=self.direction, layers=self.layers)


def remembered_prompts(source: PromptSource, seed: int, given: PromptSet | None = None) -> PromptSet:
    """The prompts that a region was located on: its record has their name, number and hash but not their text.

    Args:
        source: The record.
        seed: With which they were drawn from a larger set.
        given: The set if its name alone does not lead to it, such as one read from a file.

    Raises:
        PromptError: The set is not there, or is no longer the same.
    """
    whole = load_prompts(source.name) if given is None else given
    for found in (whole, whole.sample(source.n, seed)):
        if found.hash == source.hash:
            return found
    raise PromptError(
        f"The prompts of {whole.name} are not the {source.n} that the region was located on; give the very set, and "
        "locate with the same seed if it was drawn from a larger one."
    )
