"""Scores of every eligible weight, and how regions are cut from them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

import torch

from ballast.errors import UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import tensor_fingerprint
from ballast.prompts import PromptSet
from ballast.regions import (
    Coverage,
    ModelIdentity,
    PromptSource,
    Region,
    RegionMetadata,
    Scored,
    Skipped,
    select_top,
)
from ballast.regions.refine import Outside
from ballast.regions.selection import Scope
from ballast.regions.threshold import Direction


@dataclass(frozen=True, eq=False)
class Scores:
    """What a method found.

    Attributes:
        lm: The model that was scored.
        prompts: The prompts it was scored with.
        values: fp32 scores, non-negative, in the shape of each eligible parameter, by parameter name.
        method: The method's name.
        fidelity: How close it is to its publication.
        settings: Its settings, defaults written out, and what it counted on the way.
        seed: Of everything random in it.
    """

    lm: LanguageModel
    prompts: PromptSet
    values: dict[str, torch.Tensor]
    method: str
    fidelity: str
    settings: dict[str, object]
    seed: int

    def select(
        self,
        fraction: Fraction | float | str = 0.01,
        *,
        scope: Scope = "global",
        direction: Direction = "top",
        layers: Collection[int] | None = None,
        outside: Region | None = None,
    ) -> Region:
        """Cut a region: the weights with the largest scores, exactly.

        Args:
            fraction: Share of the eligible weights, in (0, 1]; floor(fraction * n), 0.01 meaning exactly 1/100.
            scope: What is ranked together: `global`, `per_layer`, `per_tensor` or `per_row` (an output neuron).
            direction: `top`, or `bottom` for the control with the smallest scores.
            layers: Decoder blocks to select from, such as `range(15, 30)`; None for all. With scope `global` the number
                of weights stays the fraction of all eligible weights.
            outside: Weights that are not selected, such as those found for utility; the next best take their places.

        Raises:
            UsageError: The fraction is outside of (0, 1], scope or direction is unknown, there is no such layer, or
                `outside` is given with direction `bottom`.
            RegionError: Nothing would be selected, or too few scores are above zero.
            NumericalError: A score is not finite.
        """
        if outside is not None and direction == "bottom":
            raise UsageError("The lowest scores outside of a region cannot be selected; use direction top.")
        values = self.values if outside is None else Outside(self.values, outside)
        found = select_top(values, fraction, scope=scope, parts=self.lm.parts, direction=direction, layers=layers)
        parameters = dict(self.lm.model.named_parameters())
        coverage = self.lm.parts.coverage()
        metadata = RegionMetadata(
            method=self.method,
            fidelity=self.fidelity,
            settings=json.loads(json.dumps(self.settings)),
            selection=found.record,
            layout=found.layout,
            model=ModelIdentity(
                source=self.lm.source,
                name=self.lm.name,
                revision=self.lm.revision,
                fingerprints={name: tensor_fingerprint(parameters[name]) for name in found.indices},
            ),
            prompts=PromptSource(name=self.prompts.name, hash=self.prompts.hash, n=len(self.prompts)),
            coverage=Coverage(
                scored=tuple(
                    Scored(role=row["role"], tensors=row["tensors"], parameters=row["parameters"])
                    for row in coverage
                    if row["eligible"]
                ),
                skipped=tuple(
                    Skipped(
                        role=row["role"], tensors=row["tensors"], parameters=row["parameters"], reason=row["reason"]
                    )
                    for row in coverage
                    if not row["eligible"]
                ),
            ),
            seed=self.seed,
            parents=() if outside is None else (outside.region_id,),
        )
        return Region(found.indices, metadata)
