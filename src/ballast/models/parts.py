"""Name every parameter of a causal language model: which layer, which role, which way round, and may it be scored.

No model family has code of its own. A role follows from the place in the module tree, from one table of names and from
the shapes that the config implies (`roles.py`); where the last two disagree the part is `unknown`, is not eligible, and
says why. Nothing reads a weight, so models on the meta device work.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, overload

from torch import nn
from transformers import PreTrainedModel

from ballast.errors import ModelError
from ballast.models.quantised import packed_matrices, quantised_error, role_within, stored_as
from ballast.models.roles import POSITION_NAMES, SINK_NAMES, Halves, Orientation, Sizes, is_norm, suggested_role
from ballast.models.tree import decoder_blocks, expert_halves, expert_orientation, linear_orientation

NOT_SCORED = "not scored by this method"
REASONS = {
    "embedding": "token embedding",
    "position_embedding": "position embedding",
    "lm_head": "output head",
    "norm": "normalisation",
    "bias": "bias",
    "router": "router",
    "attention_sink": "attention sink",
}


@dataclass(frozen=True)
class Part:
    """One parameter and what it does.

    Attributes:
        name: As in `model.named_parameters()`.
        layer: Index of its decoder block; None outside of the blocks.
        role: `query`, `key`, `value`, `output`, `qkv`; to and from latent vectors `query_down`, `query_up`,
            `key_value_down`, `key_value_up`; `gate`, `up`, `down`, `gate_up`, these four also with the prefix
            `experts.` or `shared_experts.`; `router`, `embedding`, `position_embedding`, `lm_head`, `norm` (weight and
            bias), `bias`, `attention_sink` or `unknown`.
        shape: As stored.
        orientation: Order of the last two axes: `out_in` (rows are output neurons), `in_out` (columns are), or `none`.
        expert_dim: The axis that counts experts, for experts stored as one tensor.
        eligible: Whether it may be scored, selected and tuned: projections in decoder blocks.
        reason: Why it is not eligible; empty if it is.
        halves: For a fused gate and up, how its output neurons are ordered: all gates, then all ups (`contiguous`), or
            gate and up by turns (`interleaved`). None if not fused, or if the model does not say.
    """

    name: str
    layer: int | None
    role: str
    shape: tuple[int, ...]
    orientation: Orientation
    expert_dim: int | None
    eligible: bool
    reason: str
    halves: Halves | None = None

    @property
    def numel(self) -> int:
        """Number of entries."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def output_dim(self) -> int | None:
        """The axis that counts output neurons; None without an orientation."""
        if self.orientation == "none":
            return None
        return len(self.shape) - (2 if self.orientation == "out_in" else 1)


class CoverageRow(TypedDict):
    """Tensors of one role that share one fate."""

    role: str
    tensors: int
    parameters: int
    eligible: bool
    reason: str


class PartMap(Sequence[Part]):
    """All parts of one model, in the order of `model.named_parameters()`."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Hold `parts`; their names are distinct."""
        self._parts = tuple(parts)
        self._by_name = {part.name: part for part in self._parts}

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | Sequence[Part]:
        """The part at a position, or several."""
        return self._parts[index]

    def __len__(self) -> int:
        """Number of parts."""
        return len(self._parts)

    def __iter__(self) -> Iterator[Part]:
        """All parts in order."""
        return iter(self._parts)

    def by_name(self, name: str) -> Part:
        """The part of this parameter name; KeyError if the model has no such parameter."""
        return self._by_name[name]

    def eligible(self) -> tuple[Part, ...]:
        """The parts that may be scored, selected and tuned."""
        return tuple(part for part in self._parts if part.eligible)

    def by_layer(self) -> dict[int, dict[str, Part]]:
        """The eligible parts of each decoder block by role, in order of the blocks.

        A role that several parts of a block have, such as that of experts stored one by one, is left out.
        """
        counts = Counter((part.layer, part.role) for part in self.eligible())
        layers: dict[int, dict[str, Part]] = {}
        for part in self.eligible():
            if part.layer is not None:
                block = layers.setdefault(part.layer, {})
                if counts[part.layer, part.role] == 1:
                    block[part.role] = part
        return dict(sorted(layers.items()))

    def roles(self) -> tuple[str, ...]:
        """Every role that occurs, in order of first appearance."""
        return tuple(dict.fromkeys(part.role for part in self._parts))

    def coverage(self, scored: Collection[str] | None = None) -> list[CoverageRow]:
        """One row per (role, reason): how many tensors and entries it has and why they are left out, if they are.

        Every parameter is counted in exactly one row. Eligible rows come first, the largest first.

        Args:
            scored: Names of the eligible parameters that a method scored; None for all.
        """
        groups: dict[tuple[str, bool, str], list[Part]] = defaultdict(list)
        for part in self._parts:
            left = part.eligible and scored is not None and part.name not in scored
            groups[part.role, part.eligible and not left, NOT_SCORED if left else part.reason].append(part)
        rows = [
            CoverageRow(
                role=role,
                tensors=len(parts),
                parameters=sum(part.numel for part in parts),
                eligible=eligible,
                reason=reason,
            )
            for (role, eligible, reason), parts in groups.items()
        ]
        return sorted(rows, key=lambda row: (not row["eligible"], -row["parameters"], row["role"], row["reason"]))


def part_map(model: PreTrainedModel) -> PartMap:
    """Name every parameter of a causal language model; parameters that share memory by tying are one part.

    Args:
        model: Any decoder of transformers, also within a multimodal wrapper (other towers are listed as not eligible).

    Raises:
        ModelError: There is no list of decoder blocks, no parameter is eligible, or weight matrices are packed.
    """
    namer = _Namer(model)
    parts = PartMap(tuple(namer.parts()))
    packed = dict(packed_matrices(model, namer.blocks))
    if packed or (namer.quantised and not parts.eligible()):
        raise quantised_error(model, packed | namer.quantised)
    if not parts.eligible():
        skipped = "; ".join(f"{row['tensors']} {row['role']}: {row['reason']}" for row in parts.coverage()[:4])
        raise ModelError(
            f"{type(model).__name__} has no weight matrix of a known role ({skipped}); "
            "use a transformer language model whose layers transformers itself implements."
        )
    return parts


class _Namer:
    """What `part_map` knows about one model while it walks over its parameters."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.model = model
        self.sizes = Sizes.of(config)
        self.blocks = decoder_blocks(model, int(config.num_hidden_layers))
        self.decoder = self.blocks.rpartition(".")[0]
        self.embedding = model.get_input_embeddings()
        self.head = model.get_output_embeddings()
        self.quantised: dict[str, str] = {}  # the form of each weight matrix that is, by name

    def parts(self) -> Iterator[Part]:
        for name, parameter in self.model.named_parameters():
            owner_name, _, leaf = name.rpartition(".")
            owner = self.model.get_submodule(owner_name)
            yield self._part(name, owner, leaf, parameter)

    def _part(self, name: str, owner: nn.Module, leaf: str, parameter: nn.Parameter) -> Part:
        if name.startswith(f"{self.blocks}."):
            index, *path = name.removeprefix(f"{self.blocks}.").split(".")
            return self._block_part(name, int(index), path, owner, parameter)
        if owner is self.embedding:
            tied = self.head is not None and self.head.weight is parameter
            reason = "token embedding, tied to the output head" if tied else REASONS["embedding"]
            return _left_out(name, None, "embedding", parameter, reason)
        if owner is self.head and leaf == "weight":
            return _left_out(name, None, "lm_head", parameter, orientation=linear_orientation(owner))
        if owner is self.head:
            return _left_out(name, None, "bias", parameter)
        if self.decoder and not name.startswith(f"{self.decoder}."):
            outside = name.removeprefix("model.").partition(".")[0]
            return _left_out(name, None, "unknown", parameter, f"in {outside!r}, not in the text decoder")
        owner_name = name.rpartition(".")[0].rpartition(".")[2]
        if isinstance(owner, nn.Embedding) and owner_name in POSITION_NAMES:
            return _left_out(name, None, "position_embedding", parameter)
        if parameter.ndim == 1 and is_norm(owner_name):
            return _left_out(name, None, "norm", parameter)
        return _left_out(name, None, "unknown", parameter, f"no role is known for {owner_name!r} outside the blocks")

    def _block_part(self, name: str, layer: int, path: list[str], owner: nn.Module, parameter: nn.Parameter) -> Part:
        leaf = path[-1]
        if leaf in SINK_NAMES and parameter.ndim == 1:
            return _left_out(name, layer, "attention_sink", parameter)
        if len(path) > 1 and parameter.ndim == 1 and is_norm(path[-2]):
            return _left_out(name, layer, "norm", parameter)
        if leaf == "bias" and parameter.ndim == 1:
            return _left_out(name, layer, "bias", parameter)
        if leaf.endswith("_bias") and suggested_role([*path[:-1], leaf.removesuffix("_bias")]):
            return _left_out(name, layer, "bias", parameter, "bias of experts")

        if parameter.ndim > 1 and (form := stored_as(parameter)):
            self.quantised[name] = form
            return _left_out(name, layer, role_within(path) or "unknown", parameter, f"quantised, stored as {form}")

        path = path[:-1] if leaf == "weight" else path
        role = suggested_role(path)
        if role is None:
            return _left_out(name, layer, "unknown", parameter, f"no role is known for the name {path[-1]!r}")
        orientation: Orientation = "none"
        halves: Halves | None = None
        if parameter.ndim == 2:
            orientation = linear_orientation(owner)
            in_out = orientation == "in_out"
            fits = self.sizes.allows(role, *(reversed(parameter.shape) if in_out else parameter.shape))
            halves = "contiguous" if role.endswith("gate_up") else None
        else:
            found = expert_orientation(owner, self.sizes) if role.startswith("experts.") else None
            fits = found is not None
            orientation = found or "none"
            halves = expert_halves(owner) if role.endswith("gate_up") else None
        if not fits:
            reason = f"named like {role}, but its shape does not follow from the config"
            return _left_out(name, layer, "unknown", parameter, reason)
        if role == "router":
            return _left_out(name, layer, "router", parameter, orientation=orientation)
        if orientation == "none":
            reason = f"named like {role}, but {type(owner).__name__} is no linear layer that is known"
            return _left_out(name, layer, "unknown", parameter, reason)
        expert_dim = 0 if parameter.ndim == 3 else None
        return Part(name, layer, role, tuple(parameter.shape), orientation, expert_dim, True, "", halves)


def _left_out(
    name: str,
    layer: int | None,
    role: str,
    parameter: nn.Parameter,
    reason: str | None = None,
    orientation: Orientation = "none",
) -> Part:
    return Part(name, layer, role, tuple(parameter.shape), orientation, None, False, reason or REASONS[role])
