"""Scaling layers while a model runs, without a copy of the model and without a change that would have to be undone.

- `scaled_outputs`: every weight matrix W of the layers acts as alpha * W (arXiv 2408.17003, section 3.3). What a
  projection puts out, y = W x + b, becomes alpha * (y - b) + b.
- `scaled_contributions`: what attention and the feed-forward part of the layers add to the residual stream is
  multiplied by alpha (ours). A norm behind a projection cancels the first kind of scaling and not this one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import nn

from ballast.errors import ModelError
from ballast.locate.layers.gap_curve import Window
from ballast.models import LanguageModel
from ballast.models.tree import block_modules

ROUNDINGS = 8  # of the residual stream within one block, at most


@contextmanager
def scaled_outputs(lm: LanguageModel, window: Window, factor: float) -> Iterator[None]:
    """Let all projections of some layers act as if their weights were multiplied; biases stay.

    Experts that share a tensor read a multiplied copy of it, which lives for one call of their block: their projections
    have no modules of their own whose outputs could be seen.

    Args:
        lm: The model.
        window: The layers.
        factor: alpha.
    """
    stacks: dict[str, list[str]] = defaultdict(list)
    with ExitStack() as undo:
        for part in lm.parts.eligible():
            owner, _, leaf = part.name.rpartition(".")
            if part.layer not in range(*window):
                continue
            if part.expert_dim is not None:
                stacks[owner].append(leaf)
                continue
            module = lm.model.get_submodule(owner)
            undo.callback(module.register_forward_hook(partial(_without_bias, factor)).remove)
        for owner, leaves in stacks.items():
            _scale_during_calls(lm.model.get_submodule(owner), leaves, factor, undo)
        yield


def _without_bias(factor: float, module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    bias = getattr(module, "bias", None)
    return output * factor if bias is None else output + (factor - 1) * (output - bias)


def _scale_during_calls(module: nn.Module, names: Sequence[str], factor: float, undo: ExitStack) -> None:
    own: dict[str, nn.Parameter] = {}

    def before(*_: Any) -> None:
        for name in names:
            own[name] = module.get_parameter(name)  # those of a streamed model are there during the call only
            module.register_parameter(name, nn.Parameter(own[name].detach() * factor, requires_grad=False))

    def after(*_: Any) -> None:
        for name, value in own.items():
            module.register_parameter(name, value)

    undo.callback(module.register_forward_pre_hook(before).remove)
    undo.callback(module.register_forward_hook(after, always_call=True).remove)  # also when memory runs out


@contextmanager
def scaled_contributions(
    sublayers: Sequence[tuple[nn.Module, nn.Module]], window: Window, factor: float
) -> Iterator[None]:
    """Multiply what some layers add to the residual stream.

    Args:
        sublayers: Of every block the two modules whose outputs are added, see `residual_sublayers`.
        window: The layers.
        factor: alpha.
    """
    with ExitStack() as undo:
        for pair in sublayers[slice(*window)]:
            for module in pair:
                undo.callback(module.register_forward_hook(partial(_whole, factor)).remove)
        yield


def _whole(factor: float, _: nn.Module, __: Any, output: Any) -> Any:
    return output * factor if isinstance(output, torch.Tensor) else (output[0] * factor, *output[1:])


@torch.no_grad()
def residual_sublayers(lm: LanguageModel, ids: Sequence[int]) -> list[tuple[nn.Module, nn.Module]]:
    """Of every block the two modules whose outputs are added to the residual stream.

    They are those whose outputs sum up to what the block adds, or to a fixed share of it: attention and feed-forward
    part, or the norms behind them. No name tells that, since equal names mean different places in different families.

    Args:
        lm: The model.
        ids: Tokens of any prompt; the last one is looked at.

    Raises:
        ModelError: No two modules of a block sum up to what it adds.
    """
    blocks = block_modules(lm.model)
    inside: dict[nn.Module, torch.Tensor] = {}
    entering: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        inside[module] = _last_token(output)

    def enter(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        entering[block] = _last_token(arguments[0] if arguments else named["hidden_states"])

    with ExitStack() as undo:
        for block in blocks:
            undo.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            for module in (block, *block.children()):
                undo.callback(module.register_forward_hook(keep).remove)
        lm.model(input_ids=torch.tensor([list(ids)], device=lm.device), logits_to_keep=1, use_cache=False)
    found = []
    for number, block in enumerate(blocks):
        added = inside[block] - entering[block]
        outputs = {module: inside[module] for module in block.children() if module in inside}
        pairs = {pair: _misfit(added, outputs[pair[0]] + outputs[pair[1]]) for pair in combinations(outputs, 2)}
        rounding = ROUNDINGS * torch.finfo(lm.model.dtype).eps * float(inside[block].norm() + entering[block].norm())
        best = min(pairs, key=lambda pair: pairs[pair], default=None)
        if best is None or pairs[best] > rounding:
            raise ModelError(
                f"No two modules of layer {number} of {type(lm.model).__name__} sum up to what the layer adds to the "
                "residual stream; use mode=output, which scales the weights."
            )
        found.append(best)
    return found


def _misfit(added: torch.Tensor, outputs: torch.Tensor) -> float:
    """What is left of the one when the best share of the other is taken off; a share shows a residual multiplier."""
    if outputs.shape != added.shape or not outputs.any():
        return float("inf")
    return float((added - (added @ outputs) / (outputs @ outputs) * outputs).norm())


def _last_token(output: Any) -> torch.Tensor:
    values = output if isinstance(output, torch.Tensor) else output[0]
    return values.reshape(-1, values.shape[-1])[-1].double()
