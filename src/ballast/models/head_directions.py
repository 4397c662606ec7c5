"""Where attention puts the entries of a head: the direction in which one output of a projection arrives.

Entry i of a query or key at position t is rotated, and in some models normed with its head before:

    x  ->  q = w * x / rms(x)  ->  q_rot = R_t q

A projection is made to put out a single entry per head, and attention shows the vector that becomes of it. So its
direction u[t, i] = R_t e_i / |R_t e_i| comes from the model's own rotation, whatever that is. The entries of a head
arrive at right angles: the part of q_rot that comes from entry i is u <u, q_rot>.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch

from ballast.models.attention import Attention, observed_attention, precise
from ballast.models.language_model import LanguageModel
from ballast.models.units import UnitGroup

PROBE = 128.0  # far above the epsilon of every norm, and exact in bfloat16
Norm = Literal["none", "head", "all heads"]


class Directions(NamedTuple):
    """How the entries of a head of one kind arrive in one layer; T positions, d entries.

    Attributes:
        unit: (T, d, d); [t, i] is the unit vector along which entry i arrives at position t.
        largest: (T, d) how far along it an entry arrives that has its head to itself. With a norm over the head this is
            the most that it can ever be.
        norm: What is normed together before the rotation: nothing, each head, or all heads of a token.
        orthogonal: Whether the directions of a head stand at right angles, as they do unless a norm mixes entries.
    """

    unit: torch.Tensor
    largest: torch.Tensor
    norm: Norm
    orthogonal: bool


@torch.no_grad()
def observed_directions(
    lm: LanguageModel, groups: Sequence[UnitGroup], length: int
) -> dict[tuple[int, str], Directions]:
    """The directions of query, key and value neurons at positions 0 to `length` - 1, by layer and kind.

    One pass over as many rows as the entries of a head divided by the key heads. Equal directions share memory.

    Args:
        lm: The model.
        groups: Groups of the kinds `query`, `key` and `value`.
        length: Number of positions.

    Raises:
        ModelError: The model does not show its attention.
    """
    if not groups:
        return {}
    rows = max(math.ceil(group.shape[1] / group.shape[0]) for group in groups)
    by_owner: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in groups:
        by_owner[group.lines[0].part.name.rpartition(".")[0]].append(group)
    wanted = {(group.layer, group.kind): group for group in groups}
    found: dict[tuple[int, str], Directions] = {}

    def see(attention: Attention) -> None:
        for kind in ("query", "key", "value"):
            if group := wanted.get((attention.layer, kind)):
                arrived = getattr(attention, kind)
                resolution = torch.finfo(arrived.dtype).eps
                read = _read(precise(arrived), group.shape[0], group.shape[1], resolution)
                found[group.layer, kind] = _sharing(read, found.values(), resolution)

    ids = torch.full((rows + 1, length), lm.pad_id, device=lm.device)
    hooks = [
        lm.model.get_submodule(owner).register_forward_hook(_single_entries(members, rows))
        for owner, members in by_owner.items()
    ]
    try:
        with observed_attention(lm, see):
            lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _single_entries(groups: Sequence[UnitGroup], rows: int) -> Callable[..., torch.Tensor]:
    """A hook after which every head of every row has one entry only, another one in each row.

    The last row is the first with every second head doubled: the answer tells what is normed together.
    """

    def hook(_: object, arguments: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        single = torch.zeros_like(output)
        for group in groups:
            heads, size = group.shape
            table = group.lines[0].positions.reshape(heads, size).to(output.device)
            for row in range(rows):
                entries = torch.arange(row * heads, (row + 1) * heads) % size
                single[row][:, table[torch.arange(heads), entries]] = PROBE
            first = table[torch.arange(heads), torch.arange(heads) % size]
            single[rows][:, first] = PROBE
            single[rows][:, first[::2]] = 2 * PROBE
        return single

    return hook


def _read(arrived: torch.Tensor, heads: int, size: int, resolution: float) -> Directions:
    """Directions out of what attention showed, (rows + 1, heads, T, d)."""
    smallest = torch.finfo(arrived.dtype).tiny
    entries = torch.arange(size, device=arrived.device)
    vectors = arrived[entries // heads, entries % heads].transpose(0, 1)  # (T, d, d)
    largest = vectors.norm(dim=-1)
    unit = vectors / largest.clamp_min(smallest).unsqueeze(-1)
    growth = float(arrived[-1, 0, 0].norm() / arrived[0, 0, 0].norm().clamp_min(smallest))
    norm: Norm = "none" if growth > 1.9 else "head" if growth < 1.05 else "all heads"
    angles = unit @ unit.transpose(1, 2) - torch.eye(size, device=unit.device, dtype=unit.dtype)
    alone = torch.equal(vectors[0], vectors[0].diagonal().diag())  # nothing is rotated at position 0
    return Directions(unit, largest, norm, alone and bool(angles.abs().max() <= 8 * resolution))


def _sharing(new: Directions, known: Iterable[Directions], resolution: float) -> Directions:
    """The same with the memory of directions that are equal in the precision of the model."""
    for other in known:
        if other.unit.shape == new.unit.shape and bool((other.unit - new.unit).abs().max() <= 4 * resolution):
            return new._replace(unit=other.unit)
    return new
