"""One patch in place of several: those made one on top of the other, and those made side by side on one base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from ballast.errors import PatchError, UsageError
from ballast.models.fingerprint import tensor_fingerprint
from ballast.models.streaming import require_in_memory
from ballast.patches.difference import Conflict, changed_entries, disagreement
from ballast.patches.entries import Entries
from ballast.patches.header import TensorRecord
from ballast.patches.patch import Patch
from ballast.patches.swap import check_outcome, patched_parameters

OnConflict = Literal["error", "last", "sum"]


class Stacked(NamedTuple):
    """A patch made of several.

    Attributes:
        patch: Has the effect of all of them, in order.
        conflicts: By tensor the entries that patches made side by side set to different values; empty without any.
    """

    patch: Patch
    conflicts: dict[str, Conflict]


def stack(patches: Sequence[Patch], model: torch.nn.Module, *, on_conflict: OnConflict = "error") -> Stacked:
    """Make one patch with the effect of several on their common base.

    Each tensor is taken for itself. A patch made for what the patches before it leave there is put on top, as by
    applying one after the other. A patch made for the base is put beside them, and where it sets an entry that one of
    them has set otherwise, there is a conflict.

    Args:
        patches: In order, at least two.
        model: Their base, in memory; it is not changed.
        on_conflict: `error` refuses; `last` takes the value of the later patch; `sum` adds the later patch's difference
            from the base to what the earlier ones left, for every entry that both set, rounded once per patch to the
            model's dtype.

    Raises:
        PatchError: A patch is for other weights, there is a conflict, or nothing is changed in the end.
        UsageError: There are fewer than two patches, or `on_conflict` is unknown.
        ModelError: The model is streamed.
    """
    if len(patches) < 2:
        raise UsageError("A stack needs at least two patches.")
    if on_conflict not in ("error", "last", "sum"):
        raise UsageError(f"Unknown way {on_conflict!r} out of a conflict; use error, last or sum.")
    parameters = {name: value for patch in patches for name, value in patched_parameters(model, patch.header).items()}
    require_in_memory(parameters.values())
    changes, conflicts = {}, {}
    for name, parameter in sorted(parameters.items()):
        parts = [(patch.header.tensors[name], patch.entries[name]) for patch in patches if name in patch.entries]
        changes[name], conflict = _stacked(name, parameter.detach().cpu(), parts, add=on_conflict == "sum")
        if conflict:
            conflicts[name] = conflict
    if conflicts and on_conflict == "error":
        raise PatchError(_refusal(conflicts))
    made = {str(number): patch.header.settings for number, patch in enumerate(patches, start=1)}
    settings = {"verb": "stack", "on_conflict": on_conflict, "patches": made}
    return Stacked(Patch.from_values(changes, model, base=patches[0].header.base, settings=settings), conflicts)


def _stacked(
    name: str, base: torch.Tensor, parts: Sequence[tuple[TensorRecord, Entries]], *, add: bool
) -> tuple[Entries, Conflict | None]:
    """The joint change of one tensor, and what the parts disagree about."""
    start = base.reshape(-1)
    now, set_before, disputed = start.clone(), *torch.zeros((2, len(start)), dtype=torch.bool)
    largest, alone = 0.0, tensor_fingerprint(base)
    for record, entries in parts:
        reached = tensor_fingerprint(now.view(base.shape))
        if record.base not in (reached, alone):
            raise PatchError(
                f"A patch was made for other values of {name} than this model has, alone or with the patches before "
                "it; give the base of all, and patches in the order in which they were made."
            )
        on_top = record.base == reached
        check_outcome(name, (now if on_top else start).view(base.shape), entries, record, "patched")
        index, values = entries.indices.long(), entries.values
        if not on_top:
            both = set_before[index]
            differ, gap = disagreement(now[index[both]], values[both])
            disputed[index[both][differ]] = True
            largest = max(largest, gap)
            if add:
                summed = now[index].double() + values.double() - start[index].double()
                values = torch.where(both, summed.to(values.dtype), values)
        now[index] = values
        set_before[index] = True
    count = int(disputed.sum())
    conflict = Conflict(count, count / int(set_before.sum()), largest) if count else None
    return changed_entries(name, start, now), conflict


def _refusal(conflicts: dict[str, Conflict]) -> str:
    name, worst = max(conflicts.items(), key=lambda item: item[1].largest)
    total = sum(conflict.entries for conflict in conflicts.values())
    return (
        f"The patches set {total} entries of {len(conflicts)} tensors to different values, by up to "
        f"{worst.largest:.3g} in {name}; choose what counts with on_conflict last or sum (--on-conflict)."
    )
