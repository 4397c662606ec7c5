"""Anchoring: weights that matter for safety may move, but the farther the more it costs.

    L = L_task + (weight / 2) sum_i F_i (w_i - w0_i)^2        (elastic weight consolidation, arXiv 1612.00796)

with F the importance of weight i and w0 its value before. The gradient of the second term is added right before the
optimizer steps, so gradient clipping does not see it. Beside the model only an index, a value and an importance are
held for each anchored weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ballast.errors import RegionError, UsageError
from ballast.locate.scores import WeightScores
from ballast.models.fingerprint import combined, tensor_fingerprint
from ballast.regions import Region
from ballast.tune.safety_preserving import holds, own_names


class Anchor(TrainerCallback):
    """Pulls weights back to where they were; a callback for the Trainer of transformers and those built on it.

    Attributes:
        importance: F of the anchored weights, (k,) fp32 per parameter name.
    """

    def __init__(
        self,
        indices: Mapping[str, torch.Tensor],
        importance: Mapping[str, torch.Tensor],
        fingerprints: Mapping[str, str],
        weight: float,
    ) -> None:
        """Use `of_region` or `of_scores`.

        Args:
            indices: Flat row-major indices (k,) per parameter name.
            importance: F (k,) per parameter name.
            fingerprints: SHA-256 of each of these parameters.
            weight: Of the second term; a weight of F = 1 that moved by d costs weight * d**2 / 2.

        Raises:
            UsageError: The weight is not above 0.
        """
        if not weight > 0:
            raise UsageError(f"The weight of the anchor is {weight}; it must be above 0.")
        self.importance, self._indices, self._weight = dict(importance), dict(indices), weight
        self._fingerprints = fingerprints
        self._before: dict[str, torch.Tensor] | None = None

    @classmethod
    def of_region(cls, region: Region, weight: float) -> Self:
        """Anchor the weights of a region, all with F = 1."""
        ones = {name: torch.ones(len(index)) for name, index in region.indices.items()}
        return cls(region.indices, ones, region.metadata.model.fingerprints, weight)

    @classmethod
    def of_scores(cls, scores: WeightScores, weight: float) -> Self:
        """Anchor every weight with a score above 0; F is the score over the mean of these scores.

        Raises:
            RegionError: No score is above 0.
        """
        indices = {name: values.reshape(-1).nonzero().squeeze(1) for name, values in scores.values.items()}
        indices = {name: index for name, index in indices.items() if len(index)}
        if not indices:
            raise RegionError("No weight has a score above zero, so nothing would be anchored; locate again.")
        found = {name: scores.values[name].reshape(-1)[index] for name, index in indices.items()}
        mean = sum(float(values.double().sum()) for values in found.values()) / sum(map(len, found.values()))
        known = scores.lm.fingerprints()
        return cls(indices, {name: values / mean for name, values in found.items()}, known, weight)

    def identity(self) -> dict[str, str | float]:
        """What a manifest records: the weight of the term, and a hash of which weights are anchored how much."""
        tensors = {f"{name}.indices": index for name, index in self._indices.items()} | self.importance
        return {
            "weight": self._weight,
            "hash": combined({name: tensor_fingerprint(value) for name, value in tensors.items()}),
        }

    def reaches_beyond(self, region: Region) -> bool:
        """Whether it pulls at any weight that is not in a region; those of a region that is protected never move."""
        nothing = torch.zeros(0, dtype=torch.long)
        return any(
            not torch.isin(index.cpu().long(), region.indices.get(name, nothing).long()).all()
            for name, index in self._indices.items()
        )

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Read the values before anything can change them, also a checkpoint that training continues from."""
        parameters = own_names(named["model"])
        for name, index in self._indices.items():
            if name not in parameters or not holds(parameters[name], self._fingerprints[name]):
                raise RegionError(
                    f"{name} is missing or holds other values than those that were located on; anchor that model."
                )
            device = parameters[name].device
            self._indices[name], self.importance[name] = index.to(device), self.importance[name].to(device)
        self._before = {
            name: parameters[name].detach().reshape(-1)[index.long()].float() for name, index in self._indices.items()
        }

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Add the gradient of the second term."""
        assert self._before is not None
        parameters = own_names(named["model"])
        for name, index in self._indices.items():
            value, places = parameters[name], index.long()
            assert value.grad is not None
            moved = value.view(-1)[places].float() - self._before[name]
            pull = self._weight * self.importance[name] * moved
            value.grad.view(-1)[places] += pull.to(value.grad.dtype)
