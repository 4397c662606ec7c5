"""What a method found, and how regions are cut from it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

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
from ballast.regions.refine import outside_of
from ballast.regions.selection import DEFAULT_FRACTION, Scope, exact_fraction
from ballast.regions.threshold import Direction
from ballast.regions.unit_selection import UnitScope
from ballast.shards import whole


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores(ABC):
    """What a method found.

    Attributes:
        lm: The model that was scored.
        prompts: The prompts it was scored with.
        method: The method's name.
        fidelity: How close it is to its publication.
        settings: Its settings, defaults written out, and what it counted on the way.
        seed: Of everything random in it.
    """

    lm: LanguageModel
    prompts: PromptSet
    method: str
    fidelity: str
    settings: dict[str, object]
    seed: int

    @abstractmethod
    def select(
        self,
        fraction: Fraction | float | str | None = None,
        *,
        scope: Scope | UnitScope | None = None,
        direction: Direction = "top",
        layers: Collection[int] | None = None,
        outside: Region | None = None,
    ) -> Region:
        """Cut a region: the weights, neurons, heads or layers with the largest scores, exactly.

        Args:
            fraction: Share of what was scored, in (0, 1]; floor(fraction * n), 0.01 meaning exactly 1/100. None takes
                the method's own choice if it makes one, else 0.01.
            scope: What is ranked together. Weights: `global` (default), `per_layer`, `per_tensor` or `per_row` (an
                output neuron). Units: `per_kind` (default; all feed-forward neurons, all query neurons ...),
                `per_layer` or `global`.
            direction: `top`, or `bottom` for the control with the smallest scores.
            layers: Decoder blocks to select from, such as `range(15, 30)`; None for all. With scope `global` the number
                stays the fraction of all that was scored.
            outside: Weights that are not selected, such as those found for utility; the next best take their places. A
                unit with any such weight is not selected.

        Raises:
            UsageError: The fraction is outside of (0, 1], scope or direction is unknown, there is no such layer, or
                `outside` is given with direction `bottom`.
            RegionError: Nothing would be selected, or too few scores are above zero.
            NumericalError: A score is not finite.
        """

    def _metadata(
        self, names: Iterable[str], scored: Collection[str], outside: Region | None, **more: Any
    ) -> RegionMetadata:
        """The record of a region with weights in the parameters `names` out of those that were `scored`."""
        rows = [*self.lm.parts.coverage(scored)]
        return RegionMetadata(
            method=self.method,
            fidelity=self.fidelity,
            settings=json.loads(json.dumps(self.settings)),
            model=ModelIdentity(
                source=self.lm.source,
                name=self.lm.name,
                revision=self.lm.revision,
                fingerprints={name: tensor_fingerprint(self.lm.weight(name)) for name in names},
            ),
            prompts=PromptSource(name=self.prompts.name, hash=self.prompts.hash, n=len(self.prompts)),
            coverage=Coverage(
                scored=tuple(
                    Scored(role=row["role"], tensors=row["tensors"], parameters=row["parameters"])
                    for row in rows
                    if row["eligible"]
                ),
                skipped=tuple(
                    Skipped(
                        role=row["role"], tensors=row["tensors"], parameters=row["parameters"], reason=row["reason"]
                    )
                    for row in rows
                    if not row["eligible"]
                ),
            ),
            seed=self.seed,
            parents=() if outside is None else (outside.region_id,),
            **more,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightScores(Scores):
    """Scores of single weights.

    Attributes:
        values: fp32 scores, non-negative, in the shape of each eligible parameter, by parameter name. Those of a
            streamed model are formed whenever they are asked for; those of a sharded one are spread as its weights are.
    """

    values: Mapping[str, torch.Tensor]

    def select(
        self,
        fraction: Fraction | float | str | None = None,
        *,
        scope: Scope | UnitScope | None = None,
        direction: Direction = "top",
        layers: Collection[int] | None = None,
        outside: Region | None = None,
    ) -> Region:
        """As `Scores.select`."""
        if outside is not None and direction == "bottom":
            raise UsageError("The lowest scores outside of a region cannot be selected; use direction top.")
        if scope == "per_kind":
            raise UsageError("Weights are not ranked per kind; use the scope global, per_layer, per_tensor or per_row.")
        found = select_top(
            self.values if outside is None else outside_of(self.values, outside),
            DEFAULT_FRACTION if fraction is None else fraction,
            scope=scope or "global",
            parts=self.lm.parts,
            direction=direction,
            layers=layers,
        )
        metadata = self._metadata(found.indices, self.values, outside, selection=found.record, layout=found.layout)
        return Region(found.indices, metadata)

    def share_of_all(self, fraction: Fraction | float | str) -> Fraction:
        """The fraction to `select` for a share of all the model's parameters, as the first public code of ESI counts.

        Args:
            fraction: Share of all parameters, embeddings, norms and biases included and tied ones counted once.

        Raises:
            UsageError: The share is outside of (0, 1], or is more than all that was scored.
        """
        parameters = sum(part.numel for part in self.lm.parts)
        scored = sum(self.lm.parts.by_name(name).numel for name in self.values)
        share = exact_fraction(fraction) * parameters / scored
        if share > 1:
            raise UsageError(
                f"{fraction} of all {parameters:,} parameters is more than the {scored:,} scored ones; ask for less."
            )
        return share

    def cells(self) -> list[dict[str, Any]]:
        """Rows `layer`, `role`, `size`, `mass` (sum of the scores), in order of layer and role."""
        found: dict[tuple[int | None, str], list[float]] = defaultdict(lambda: [0, 0.0])
        for name, values in self.values.items():
            part = self.lm.parts.by_name(name)
            found[part.layer, part.role][0] += part.numel
            found[part.layer, part.role][1] += float(whole(values).sum(dtype=torch.float64))
        ordered = sorted(found, key=lambda cell: (cell[0] is None, cell[0] or 0, cell[1]))
        return [
            {"layer": layer, "role": role, "size": int(found[layer, role][0]), "mass": found[layer, role][1]}
            for layer, role in ordered
        ]
