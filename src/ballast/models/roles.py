"""Which role a name suggests and which shapes that role may have; a role is given only where the two agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig

Orientation = Literal["out_in", "in_out", "none"]
Halves = Literal["contiguous", "interleaved"]

# The one table of names, shared by all models. A projection is called by its module, or by the parameter itself where
# experts are stored as one tensor. `c_proj` and `dense` mean different things inside and outside of attention.
ATTENTION_NAMES = {
    **dict.fromkeys(("q_proj", "query"), "query"),
    **dict.fromkeys(("k_proj", "key"), "key"),
    **dict.fromkeys(("v_proj", "value"), "value"),
    **dict.fromkeys(("o_proj", "out_proj", "dense", "c_proj"), "output"),
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn"), "qkv"),
    # attention through a latent vector: hidden state to latent and latent to heads
    "q_a_proj": "query_down",
    "q_b_proj": "query_up",
    "kv_a_proj_with_mqa": "key_value_down",
    "kv_b_proj": "key_value_up",
}
FEED_FORWARD_NAMES = {
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3", "fc1", "c_fc", "dense_h_to_4h"), "up"),
    **dict.fromkeys(("down_proj", "w2", "fc2", "c_proj", "dense_4h_to_h"), "down"),
    "gate_up_proj": "gate_up",
    **dict.fromkeys(("router", "gate", "shared_expert_gate"), "router"),
}
POSITION_NAMES = ("wpe", "embed_positions", "position_embedding", "position_embeddings")
SINK_NAMES = ("sinks",)
NORM_FRAGMENTS = ("norm", "ln_")
EXPERT_COUNT_SETTINGS = ("num_experts", "num_local_experts", "n_routed_experts")
INNER_WIDTH_SETTINGS = ("n_inner", "ffn_dim", "ffn_hidden_size")


def suggested_role(path: list[str]) -> str | None:
    """The role that a path within a decoder block suggests, or None if the table does not know its last name.

    Args:
        path: Names from the block down to the projection, such as `["mlp", "experts", "down_proj"]`.

    Returns:
        A role such as `query`, `router`, `experts.down` or `shared_experts.gate`.
    """
    *parents, name = path
    if any("attn" in parent or "attention" in parent for parent in parents):
        return ATTENTION_NAMES.get(name)
    role = FEED_FORWARD_NAMES.get(name)
    if role is None or role == "router":
        return role
    if any(parent.startswith("shared_expert") for parent in parents):
        return f"shared_experts.{role}"
    return f"experts.{role}" if "experts" in parents else role


def is_norm(module_name: str) -> bool:
    """Whether a module of this name normalises."""
    return any(fragment in module_name for fragment in NORM_FRAGMENTS)


@dataclass(frozen=True)
class Sizes:
    """The numbers of a config that decide the shapes of projections; 0 or empty where the config has none.

    Attributes:
        hidden: Width of the residual stream.
        queries: Query heads times head dimension.
        keys: Key (= value) heads times head dimension.
        values: What the output projection reads: query heads times head dimension of the values.
        latents: Shapes (out, in) of the projections to and from latent vectors, by role; empty without them.
        inner: Every width of a feed-forward layer that the config names.
        experts: Routed experts per layer.
    """

    hidden: int
    queries: int
    keys: int
    values: int
    latents: Mapping[str, tuple[int, int]]
    inner: frozenset[int]
    experts: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Sizes:
        """Read the sizes from a text config."""
        hidden = _integer(config, "hidden_size")
        heads = _integer(config, "num_attention_heads")
        head_dimension = _integer(config, "head_dim") or (hidden // heads if heads else 0)
        rotated, plain = _integer(config, "qk_rope_head_dim"), _integer(config, "qk_nope_head_dim")
        values, rank = _integer(config, "v_head_dim"), _integer(config, "kv_lora_rank")
        latents = {}
        if rank:
            head_dimension = rotated + plain
            query_rank = _integer(config, "q_lora_rank")
            latents = {
                "query_down": (query_rank, hidden),
                "query_up": (heads * head_dimension, query_rank),
                "key_value_down": (rank + rotated, hidden),
                "key_value_up": (heads * (plain + values), rank),
            }
        inner: set[int] = set()
        for name, value in config.to_dict().items():
            if "intermediate_size" in name or name in INNER_WIDTH_SETTINGS:
                inner.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
        return cls(
            hidden=hidden,
            queries=heads * head_dimension,
            keys=(_integer(config, "num_key_value_heads") or heads) * head_dimension,
            values=heads * (values if rank else head_dimension),
            latents=latents,
            inner=frozenset(inner or {4 * hidden}),  # four is the convention of configs that leave the width out
            experts=_integer(config, *EXPERT_COUNT_SETTINGS),
        )

    def allows(self, role: str, out_features: int, in_features: int) -> bool:
        """Whether a matrix of this role may map `in_features` to `out_features`."""
        _, _, kind = role.rpartition(".")
        if role.startswith("shared_experts."):  # several shared experts are stored as one of several times the width
            return any(
                self._matches(kind, out_features, in_features, width * times)
                for width in self.inner
                for times in range(1, max(self.experts, 1) + 1)
            )
        if kind in ("gate", "up", "down", "gate_up"):
            return any(self._matches(kind, out_features, in_features, width) for width in self.inner)
        return self._matches(kind, out_features, in_features, 0)

    def _matches(self, kind: str, out_features: int, in_features: int, width: int) -> bool:
        expected = {
            "query": (self.queries, self.hidden),
            "key": (self.keys, self.hidden),
            "value": (self.keys, self.hidden),
            "output": (self.hidden, self.values),
            "qkv": (self.queries + 2 * self.keys, self.hidden),
            "gate": (width, self.hidden),
            "up": (width, self.hidden),
            "gate_up": (2 * width, self.hidden),
            "down": (self.hidden, width),
        }
        if kind == "router":  # one row per expert; a single row decides how much the shared expert counts
            return in_features == self.hidden and out_features in (1, self.experts)
        return {**expected, **self.latents}.get(kind) == (out_features, in_features)


def _integer(config: PretrainedConfig, *names: str) -> int:
    """The first of these settings that is a number, else 0."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 0
