"""The Patch: a sparse change of a model's weights that can be saved, applied and taken back exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ballast.errors import PatchError
from ballast.models.fingerprint import tensor_fingerprint
from ballast.patches import store
from ballast.patches.difference import PatchDifference, count_shared, differing_entries
from ballast.patches.entries import LARGEST_INDEX, Entries, check_entries
from ballast.patches.header import Header, Origin, TensorRecord
from ballast.patches.swap import state_of, swap, written
from ballast.shards import whole


@dataclass(frozen=True)
class PatchInfo:
    """A patch in numbers.

    Attributes:
        base: The model it was made for.
        entries: Changed weights.
        tensors: Tensors they are in.
        bytes: Size of indices, values and previous values; the file is larger by its header.
        parameters: Weights of the whole model.
        share: entries / parameters, in (0, 1].
        version: The version of Ballast that made the patch.
    """

    base: Origin
    entries: int
    tensors: int
    bytes: int
    parameters: int
    share: float
    version: str


@dataclass(frozen=True, eq=False)
class Patch:
    """A sparse change of a model's weights, bound by fingerprints to the tensors it was made for.

    Attributes:
        header: What it was made for and how.
        entries: The changed entries by parameter name (`named_parameters`, so a tied weight is named once).
    """

    header: Header
    entries: Mapping[str, Entries]

    @classmethod
    def from_values(
        cls,
        changes: Mapping[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        model: torch.nn.Module,
        *,
        base: Origin,
        settings: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a patch of given entries.

        Args:
            changes: By parameter name: indices (K,) integer, ascending, flat; values (K,); previous (K,), both in the
                weight's dtype. A tensor with K = 0 is left out.
            model: The model. The listed entries may hold either their previous values, their new ones or anything;
                every other entry must be that of the base.
            base: Where the model came from.
            settings: How the patch was made; any JSON.

        Raises:
            PatchError: A name is unknown, entries are invalid or not finite, or there is none.
        """
        parameters = dict(model.named_parameters())
        records, kept = {}, {}
        for name in sorted(changes):
            if name not in parameters:
                raise PatchError(f"This model has no tensor {name}; use the names of named_parameters.")
            tensor = whole(parameters[name].detach())
            indices, values, previous = (part.detach().cpu() for part in changes[name])
            if len(indices) == 0:
                continue
            narrow = indices.clamp(-1, LARGEST_INDEX).to(torch.int32)  # never wraps into the valid range
            entries = Entries(narrow, values, previous)
            check_entries(name, entries, tuple(tensor.shape), tensor.dtype)
            kept[name] = entries
            records[name] = TensorRecord(
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                base=tensor_fingerprint(written(tensor, entries, "base")),
                patched=tensor_fingerprint(written(tensor, entries, "patched")),
            )
        if not kept:
            raise PatchError("There is no changed entry to make a patch of.")
        total = sum(parameter.numel() for parameter in parameters.values())
        header = Header(base=base, parameters=total, tensors=records, settings=dict(settings or {}))
        return cls(header, kept)

    @classmethod
    def between(
        cls,
        base_model: torch.nn.Module,
        changed_model: torch.nn.Module,
        *,
        base: Origin,
        settings: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make the patch that turns one model into another of the same architecture, bit for bit.

        Raises:
            PatchError: The models do not have the same names, shapes and dtypes, or have equal weights.
        """
        return cls.from_values(differing_entries(base_model, changed_model), base_model, base=base, settings=settings)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a patch file and check all of it.

        Raises:
            PatchError: The file is missing, damaged, or not a patch.
        """
        return cls(*store.read(Path(path)))

    def save(self, path: Path | str) -> None:
        """Write the patch as one safetensors file, atomically.

        Raises:
            RunError: The file cannot be written.
        """
        store.write(Path(path), self.header, self.entries)

    def apply(self, model: torch.nn.Module) -> None:
        """Write the values into a model in memory; every check is made before the first write.

        Raises:
            PatchError: The model is not the one the patch was made for, or the patch is applied already.
        """
        swap(model, self.header, self.entries, "patched")

    def revert(self, model: torch.nn.Module) -> None:
        """Put the previous values back, bit for bit; every check is made before the first write.

        Raises:
            PatchError: The patch is not applied, or the patched tensors were changed since.
        """
        swap(model, self.header, self.entries, "base")

    @contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """Have the patch applied inside a block; a model that has it already keeps it afterwards.

        Raises:
            PatchError: The model is not the one the patch was made for.
        """
        if state_of(model, self.header) == "patched":
            yield
            return
        self.apply(model)
        try:
            yield
        finally:
            self.revert(model)

    def info(self) -> PatchInfo:
        """The patch in numbers."""
        entries = sum(len(part.indices) for part in self.entries.values())
        return PatchInfo(
            base=self.header.base,
            entries=entries,
            tensors=len(self.entries),
            bytes=sum(tensor.nbytes for part in self.entries.values() for tensor in part),
            parameters=self.header.parameters,
            share=entries / self.header.parameters,
            version=self.header.version,
        )

    def diff(self, other: Patch) -> PatchDifference:
        """Count the entries that two patches share, and those that they set to different values."""
        shared, conflicts = count_shared(self.entries, other.entries)
        different = sum(conflict.entries for conflict in conflicts.values())
        common = self.entries.keys() & other.entries.keys()
        return PatchDifference(
            shared=shared,
            same=shared - different,
            different=different,
            only_first=self.info().entries - shared,
            only_second=other.info().entries - shared,
            same_base=all(self.header.tensors[name].base == other.header.tensors[name].base for name in common),
            conflicts=conflicts,
        )
