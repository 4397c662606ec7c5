"""What every projection reads: its inputs during a forward pass, also those of experts stored as one tensor.

Projections with a module of their own are observed by a hook. Experts that share one tensor are called one by one for
the time of the observation, with the arithmetic of the model's own one-by-one forward, since only so it is known which
expert read which token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ballast.errors import ModelError
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel
from ballast.models.parts import Part
from ballast.progress import track
from ballast.prompts.batches import TokenBatch, collate

EXPERT_FACTS = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm")


class Inputs(NamedTuple):
    """What one weight matrix read in one pass.

    Attributes:
        part: The parameter.
        expert: Which of the matrices of a stack of experts; None for a matrix of its own.
        values: (N, in) in the model's dtype.
        tokens: (N,) place of each row in the flattened (B * T,) batch; None if the rows are the batch in its order.
        shares: (N,) factor with which the router takes what the expert makes of each row; None without a router.
    """

    part: Part
    expert: int | None
    values: torch.Tensor
    tokens: torch.Tensor | None
    shares: torch.Tensor | None = None


class Reader(NamedTuple):
    """Who wants to see what projections read, and at which positions.

    Attributes:
        weigh: Weight of each position of a batch, (B, T); a position of weight 0 is not shown.
        see: Called with the inputs at the other positions, N of them, and their weights (N,). Projections that read the
            same are shown the same tensor, one after the other.
        end: Called when a batch has been read.
        parameters: Names of those whose inputs are wanted; None for all.
    """

    weigh: Callable[[TokenBatch], torch.Tensor]
    see: Callable[[Inputs, torch.Tensor], None]
    end: Callable[[], None] = lambda: None
    parameters: Collection[str] | None = None


def read_inputs(lm: LanguageModel, rows: Sequence[WeightedRow], batch_size: int, readers: Sequence[Reader]) -> None:
    """Run every row once and show what each projection reads at the positions that count.

    Args:
        lm: The model.
        rows: Prompts with their responses; batched by length.
        batch_size: Rows per forward pass.
        readers: Whom to show it.

    Raises:
        ModelError: See `observed_inputs`.
    """
    ordered = sorted(rows, key=lambda row: len(row.rendered.ids), reverse=True)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    for group in track(batches, "Activations"):
        batch = collate([row.rendered for row in group], lm.pad_id).to(lm.device)
        with torch.no_grad(), counted_inputs(lm, batch, readers):
            lm.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                logits_to_keep=1,
                use_cache=False,
            )


@contextmanager
def counted_inputs(lm: LanguageModel, batch: TokenBatch, readers: Sequence[Reader]) -> Iterator[None]:
    """Show readers what projections read at the positions that count, for a forward pass of `batch` inside the block.

    Raises:
        ModelError: See `observed_inputs`.
    """
    watching = [_Watch(reader, reader.weigh(batch).flatten()) for reader in readers]

    def show(inputs: Inputs) -> None:
        for watch in watching:
            watch.show(inputs)

    with observed_inputs(lm, show):
        yield
    for reader in readers:
        reader.end()


class _Watch:
    """Cuts what a reader is shown of one batch down to the positions that count for it."""

    def __init__(self, reader: Reader, weights: torch.Tensor) -> None:
        self._reader = reader
        self._weights = weights  # (B * T,)
        self._counted = weights.nonzero().squeeze(1)
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None  # what the last projection read, and its cut

    def show(self, inputs: Inputs) -> None:
        if self._reader.parameters is not None and inputs.part.name not in self._reader.parameters:
            return
        if inputs.tokens is None:
            kept = inputs._replace(values=self._cut(inputs.values), tokens=self._counted)
            self._reader.see(kept, self._weights[self._counted])
            return
        counted = self._weights[inputs.tokens]
        places = counted.nonzero().squeeze(1)
        shares = None if inputs.shares is None else inputs.shares[places]
        kept = inputs._replace(values=inputs.values[places], tokens=inputs.tokens[places], shares=shares)
        self._reader.see(kept, counted[places])

    def _cut(self, values: torch.Tensor) -> torch.Tensor:
        """The rows that count; query, key and value projections read one tensor, which is cut once."""
        if self._last is None or not self._last[0].is_set_to(values):
            self._last = values, values[self._counted]
        return self._last[1]


@contextmanager
def observed_inputs(lm: LanguageModel, see: Callable[[Inputs], None]) -> Iterator[None]:
    """Call `see` with the inputs of every eligible weight matrix, for every forward pass inside the block.

    Raises:
        ModelError: The experts of the model are of a kind that this version cannot call one by one.
    """
    stacks: dict[str, dict[str, Part]] = defaultdict(dict)
    with ExitStack() as undo:
        for part in lm.parts.eligible():
            owner, _, leaf = part.name.rpartition(".")
            if part.expert_dim is not None:
                stacks[owner][leaf] = part
                continue
            hook = lm.model.get_submodule(owner).register_forward_pre_hook(_seen(part, see))
            undo.callback(hook.remove)
        for owner, parts in stacks.items():
            experts = lm.model.get_submodule(owner)
            if not all(hasattr(experts, fact) for fact in EXPERT_FACTS):
                raise ModelError(
                    f"The experts in {owner} cannot be called one by one, so their inputs are not known; "
                    "use a method that needs gradients only."
                )
            experts.forward = _one_by_one(experts, parts, see)
            undo.callback(delattr, experts, "forward")
        yield


def _seen(part: Part, see: Callable[[Inputs], None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        values = arguments[0].detach()
        see(Inputs(part, None, values.reshape(-1, values.shape[-1]), None))

    return hook


def _one_by_one(
    experts: Any, parts: dict[str, Part], see: Callable[[Inputs], None]
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """A forward of a stack of experts that shows what each of them reads."""
    first = "gate_up_proj" if experts.has_gate else "up_proj"

    def projected(
        name: str, expert: int, values: torch.Tensor, tokens: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        if name in parts:
            see(Inputs(parts[name], expert, values.detach(), tokens, shares.detach()))
        weight = getattr(experts, name)[expert]
        bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
        return nn.functional.linear(values, weight.T if experts.is_transposed else weight, bias)

    def forward(hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= experts.num_experts:
                continue  # a place that the router left empty
            tokens, places = torch.where(top_k_index == expert)
            shares = top_k_weights[tokens, places]
            inner = projected(first, expert, hidden_states[tokens], tokens, shares)
            inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
            outer = projected("down_proj", expert, inner, tokens, shares)
            if experts.has_post_expert_norm:
                outer = experts.post_expert_norm(outer)
            weighted = outer * shares.unsqueeze(1)
            result.index_add_(0, tokens, weighted.to(result.dtype))
        return result

    return forward
