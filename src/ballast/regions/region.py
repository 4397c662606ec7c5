"""A region: a set of weights of one model, with where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ballast.errors import RegionError
from ballast.regions.arrays import Counts, index_type
from ballast.regions.layout import Layout, cells_of
from ballast.regions.metadata import RegionMetadata, merged_fingerprints
from ballast.regions.set_algebra import AND, MINUS, OR, XOR, Operation, combined_units
from ballast.regions.storage import read_region, write_region


@dataclass(frozen=True, eq=False)
class Region:
    """A non-empty set of single weights.

    Attributes:
        indices: Per parameter with selected entries, their ascending unique flat C-order indices, (k,) int32, or int64
            for parameters of 2**31 entries and more. On the CPU.
        metadata: How it came about, the layout it lives in and the weights it belongs to.

    Raises:
        RegionError: Nothing is selected, or indices do not fit the layout.
    """

    indices: Mapping[str, torch.Tensor]
    metadata: RegionMetadata

    def __post_init__(self) -> None:
        """Check every index; keep the fingerprints of the parameters that are touched."""
        kept: dict[str, torch.Tensor] = {}
        for name in sorted(self.indices):
            if self.indices[name].numel():
                kept[name] = checked(name, self.indices[name], self.metadata.layout)
        if not kept:
            raise RegionError("The region holds no weight; widen the selection, an empty region cannot be used.")
        model = self.metadata.model
        missing = kept.keys() - model.fingerprints.keys()
        if missing:
            raise RegionError(f"The region has no fingerprint of {min(missing)}; locate it again.")
        model = model.model_copy(update={"fingerprints": {name: model.fingerprints[name] for name in kept}})
        object.__setattr__(self, "indices", kept)
        object.__setattr__(self, "metadata", self.metadata.model_copy(update={"model": model}))

    @property
    def layout(self) -> Layout:
        """Every parameter that could have been selected."""
        return self.metadata.layout

    def __len__(self) -> int:
        """Number of selected weights."""
        return sum(map(len, self.indices.values()))

    def density(self) -> float:
        """Selected weights per weight that could have been selected."""
        return len(self) / self.metadata.eligible

    @cached_property
    def region_id(self) -> str:
        """SHA-256 over the coordinates and the metadata."""
        return id_of(self.indices, self.metadata)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file atomically; equal regions give equal bytes.

        Raises:
            RunError: The file cannot be written.
        """
        write_region(Path(path), self.indices, self.metadata, self.region_id)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a Region file and check all of it.

        Raises:
            RegionError: The file is missing, damaged, or not a Region file that this version can read.
        """
        indices, metadata, region_id = read_region(Path(path))
        try:
            region = cls(indices, metadata)
        except RegionError as error:
            raise RegionError(f"{path} is damaged: {error}") from error
        require_id(Path(path), region.region_id, region_id)
        return region

    def check_model(self, fingerprints: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> None:
        """Make sure that a model has the very weights on which the region was located.

        Args:
            fingerprints: SHA-256 per parameter of the model.
            shapes: Shape per parameter of the model.

        Raises:
            RegionError: A parameter with selected entries is missing, has another shape or other values.
        """
        require_weights(self.indices, self.metadata, fingerprints, shapes)

    def matrix_counts(self) -> dict[str, Counts]:
        """Selected weights per parameter of the layout and weight matrix within it, (experts or 1,) each."""
        counts = {name: np.zeros(tensor.matrices, np.int64) for name, tensor in self.layout.items()}
        for name, indices in self.indices.items():
            tensor = self.layout[name]
            counts[name] += np.bincount(tensor.matrix_of(indices.numpy()), minlength=tensor.matrices)
        return counts

    def cells(self) -> list[dict[str, Any]]:
        """Selected weights by layer and role, see `cells_of`."""
        return cells_of(self.indices, self.layout)

    def summary(self) -> dict[str, Any]:
        """What `region.json` holds: method, sizes, threshold, ties, cells and coverage, ready for JSON."""
        metadata, selection = self.metadata, self.metadata.selection
        asked = selection.fraction if selection else None
        thresholds = selection.thresholds if selection else {}
        units = sum(map(len, metadata.selected_units.values()))
        return {
            "region_id": self.region_id,
            "granularity": metadata.granularity,
            "units": {"selected": units, "scored": selection.eligible} if units and selection else None,
            "method": metadata.method,
            "variant": metadata.variant,
            "fidelity": metadata.fidelity,
            "fraction": float(Fraction(asked)) if asked else self.density(),
            "scope": selection.scope if selection else "derived",
            "layers": list(selection.layers) if selection and selection.layers else None,
            "direction": selection.direction if selection else None,
            "requested": selection.requested if selection and not units else len(self),
            "actual": len(self),
            "eligible": metadata.eligible,
            "threshold": next(iter(thresholds.values())) if len(thresholds) == 1 else None,
            "ties": {"taken": selection.ties_taken, "left": selection.ties_left} if selection else None,
            "short_units": selection.short_units if selection else None,
            "prompts": {"name": metadata.prompts.name, "n": metadata.prompts.n} if metadata.prompts else None,
            "cells": self.cells(),
            "coverage": metadata.coverage.model_dump(mode="json"),
        }

    def __and__(self, other: Region) -> Region:
        """Weights in both; an empty result is an error."""
        return self._combined(other, AND)

    def __or__(self, other: Region) -> Region:
        """Weights in either."""
        return self._combined(other, OR)

    def __sub__(self, other: Region) -> Region:
        """Weights in this region only; an empty result is an error."""
        return self._combined(other, MINUS)

    def __xor__(self, other: Region) -> Region:
        """Weights in exactly one; an empty result is an error."""
        return self._combined(other, XOR)

    def intersection_size(self, other: Region) -> int:
        """Number of weights in both; 0 if there is none.

        Raises:
            RegionError: The regions live in different layouts.
        """
        self._require_same_layout(other)
        shared = self.indices.keys() & other.indices.keys()
        pairs = ((self.indices[name].numpy(), other.indices[name].numpy()) for name in shared)
        return sum(len(np.intersect1d(a, b, assume_unique=True)) for a, b in pairs)

    def iou(self, other: Region) -> float:
        """Intersection over union in weights; look at `overlap` for the chance level beside it.

        Raises:
            RegionError: The regions live in different layouts.
        """
        intersection = self.intersection_size(other)
        return intersection / (len(self) + len(other) - intersection)

    def sample_like(self, seed: int) -> Region:
        """A random region with as many weights in every weight matrix (and every expert) as this one.

        Args:
            seed: Decides the draw, together with the name of each parameter.
        """
        drawn: dict[str, torch.Tensor] = {}
        counts = self.matrix_counts()
        for name in self.indices:
            tensor = self.layout[name]
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
            generator = np.random.default_rng([seed, key])
            size = tensor.numel // tensor.matrices
            pieces = [
                tensor.place(matrix, generator.choice(size, count, replace=False, shuffle=False))
                for matrix, count in enumerate(counts[name].tolist())
            ]
            drawn[name] = torch.from_numpy(np.sort(np.concatenate(pieces)).astype(index_type(tensor.numel)))
        return Region(drawn, self._derived("random", {"sizes": "per weight matrix, as the parent"}, (self,), seed))

    def _combined(self, other: Region, operation: Operation) -> Self:
        self._require_same_layout(other)
        result = {}
        for name in sorted(self.indices.keys() | other.indices.keys()):
            empty = np.empty(0, index_type(self.layout[name].numel))
            mine, theirs = (
                region.indices[name].numpy() if name in region.indices else empty for region in (self, other)
            )
            result[name] = torch.from_numpy(operation.on_indices(mine, theirs))
        fingerprints = merged_fingerprints(self.metadata.model, other.metadata.model)
        metadata = self._derived(operation.name, {}, (self, other), self.metadata.seed)
        model = metadata.model.model_copy(update={"fingerprints": fingerprints})
        units = combined_units(self.metadata, other.metadata, operation)
        return type(self)(result, metadata.model_copy(update={"model": model, **units}))

    def _derived(self, method: str, settings: dict[str, Any], parents: tuple[Region, ...], seed: int) -> RegionMetadata:
        return RegionMetadata(
            method=method,
            settings=settings,
            layout=self.layout,
            model=self.metadata.model,
            coverage=self.metadata.coverage,
            seed=seed,
            parents=tuple(parent.region_id for parent in parents),
        )

    def _require_same_layout(self, other: Region) -> None:
        if self.metadata.layout_hash != other.metadata.layout_hash:
            raise RegionError(
                f"The regions select from different parameters ({self.metadata.model.name} and "
                f"{other.metadata.model.name}); only regions of one architecture and coverage can be compared."
            )


def require_weights(
    names: Iterable[str], metadata: RegionMetadata, fingerprints: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse a model with other weights in the parameters `names` of a region; see `Region.check_model`."""
    made_for = f"the region was located on {metadata.model.source}"
    remedy = "open that model or locate the region again on this one"
    for name in names:
        if name not in shapes or name not in fingerprints:
            raise RegionError(f"The model has no parameter {name}; {made_for}, so {remedy}.")
        expected = metadata.layout[name].shape
        if tuple(shapes[name]) != expected:
            raise RegionError(f"{name} has shape {tuple(shapes[name])}, not {expected}; {made_for}, so {remedy}.")
        if fingerprints[name] != metadata.model.fingerprints[name]:
            raise RegionError(f"{name} holds other values than expected; {made_for}, so {remedy}.")


def id_of(indices: Mapping[str, torch.Tensor], metadata: RegionMetadata) -> str:
    """SHA-256 over checked coordinates in code-point order of the parameters, and over the metadata."""
    digest = hashlib.sha256(metadata.to_json().encode())
    for name, places in indices.items():
        digest.update(f"\n{name}\n{len(places)}\n".encode())
        digest.update(places.numpy().data)
    return digest.hexdigest()


def require_id(path: Path, found: str, claimed: str) -> None:
    """Refuse a file whose content has another id than it claims.

    Raises:
        RegionError: It was changed.
    """
    if found != claimed:
        raise RegionError(f"{path} was changed after it was written, its content does not match its id; locate again.")


def checked(name: str, indices: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The indices in their proper type, if they are ascending, unique and within the parameter."""
    if name not in layout:
        raise RegionError(f"The region selects weights of {name}, which is not in its layout; make the region again.")
    numel = layout[name].numel
    if indices.dim() != 1 or indices.dtype not in (torch.int32, torch.int64):
        raise RegionError(f"The indices of {name} are not a list of integers; make the region again.")
    values = indices.cpu().numpy()
    if values[0] < 0 or values[-1] >= numel or (values[1:] <= values[:-1]).any():
        raise RegionError(
            f"The indices of {name} are not ascending and unique within its {numel} entries; make the region again."
        )
    return torch.from_numpy(values.astype(index_type(numel), copy=False))
