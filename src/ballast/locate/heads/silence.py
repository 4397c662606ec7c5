"""Attention heads that are silenced while the model runs; its weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

from ballast.errors import ModelError, UsageError
from ballast.models import LanguageModel
from ballast.models.attention import Attention, observed_attention
from ballast.models.units import KeyValueRule, UnitGroup, head_groups

SilenceMode = Literal["zero_out", "scale_query", "scale_key", "scale_value"]
SILENCE_MODES: tuple[SilenceMode, ...] = get_args(SilenceMode)
FACTOR = 1e-5  # of the published code, for everything but `zero_out`

Silenced = set[tuple[int, int]]


def check_head_settings(mode: str, key_value: str) -> None:
    """Refuse unknown settings of a method of heads.

    Raises:
        UsageError: There is no such mode or rule.
    """
    if mode not in SILENCE_MODES:
        raise UsageError(f"There is no mode {mode!r}; use {', '.join(SILENCE_MODES)}.")
    if key_value not in get_args(KeyValueRule):
        raise UsageError(f"There is no rule {key_value!r} for key_value; use {', '.join(get_args(KeyValueRule))}.")


def scorable_heads(lm: LanguageModel, key_value: KeyValueRule) -> tuple[list[UnitGroup], list[str]]:
    """The heads of each layer, as `head_groups` gives them.

    Raises:
        ModelError: No layer has heads that can be told apart.
    """
    groups, missing = head_groups(lm, key_value)
    if not groups:
        raise ModelError(
            f"No layer of {lm.name} has heads whose rows can be told apart; use a method of weights or neurons."
        )
    return groups, missing


@contextmanager
def silenced_heads(lm: LanguageModel, groups: Sequence[UnitGroup], mode: SilenceMode) -> Iterator[Silenced]:
    """Silence the heads that are in the yielded set, as (layer, head), in every forward pass inside the block.

    `zero_out` sets what the output projection reads of a head to zero. `scale_value` scales it by 1e-5, which is what
    scaling the head's values does. `scale_query` scales the head's queries, behind rotation and norm, so that it looks
    everywhere alike; `scale_key` is the same, for scaling the keys as this head sees them gives the same products. So
    key heads that serve several query heads change for one of them at a time.

    Raises:
        ModelError: The model does not show its attention (`scale_query`, `scale_key`).
    """
    silenced: Silenced = set()
    with ExitStack() as undo:
        if mode in ("scale_query", "scale_key"):
            undo.enter_context(observed_attention(lm, lambda attention: _scaled_queries(attention, silenced)))
        else:
            for group in groups:
                (line,) = (line for line in group.lines if not line.outputs)
                owner = lm.model.get_submodule(line.part.name.rpartition(".")[0])
                columns = line.positions.to(lm.device)
                hook = _scaled_inputs(silenced, group.layer, columns, 0.0 if mode == "zero_out" else FACTOR)
                undo.callback(owner.register_forward_pre_hook(hook).remove)
        yield silenced


def _scaled_queries(attention: Attention, silenced: Silenced) -> Attention | None:
    heads = [head for layer, head in silenced if layer == attention.layer]
    if not heads:
        return None
    query = attention.query.clone()
    query[:, heads] *= FACTOR
    return attention._replace(query=query)


def _scaled_inputs(
    silenced: Silenced, layer: int, columns: torch.Tensor, factor: float
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[torch.Tensor] | None]:
    """A hook before the output projection; `columns` (heads, head size) are those it reads of each head."""

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[torch.Tensor] | None:
        heads = [head for place, head in silenced if place == layer]
        if not heads:
            return None
        states: torch.Tensor = arguments[0].clone()
        states[..., columns[heads].flatten()] *= factor
        return (states,)

    return hook
