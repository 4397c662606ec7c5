"""How important every neuron is for every prompt of a batch, and which neurons cannot be scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from ballast.errors import ModelError
from ballast.locate.importance.neuron_attention import key_changes, of_prompt, query_changes
from ballast.locate.importance.neuron_outputs import OutputChanges
from ballast.locate.inputs import Reader, observed_inputs
from ballast.models import LanguageModel
from ballast.models.attention import Attention, observed_attention, shows_attention
from ballast.models.head_directions import Directions, observed_directions
from ballast.models.units import neuron_groups
from ballast.prompts.batches import TokenBatch

CHANGES = {"query": query_changes, "key": key_changes}


class Importances:
    """Importances of the neurons of a model, batch by batch.

    Attributes:
        groups: The neurons that can be scored.
        notes: `left_out` and `approximated`: a sentence for each layer and kind; missing where there is none.
    """

    def __init__(self, lm: LanguageModel, kinds: Sequence[str], length: int) -> None:
        """Find the neurons and how attention treats their entries.

        Args:
            lm: The model.
            kinds: Kinds of neurons.
            length: Tokens of the longest prompt.

        Raises:
            ModelError: No neuron of these kinds can be scored.
        """
        self.lm = lm
        groups, left_out = neuron_groups(lm, kinds)
        attending = [group for group in groups if group.kind in ("query", "key", "value")]
        if attending and not shows_attention(lm):
            groups = [group for group in groups if group not in attending]
            left_out.append("query, key and value neurons are left out, for the model does not show its attention")
            attending = []
        self.directions = observed_directions(lm, attending, length)
        mixed = [place for place, found in self.directions.items() if place[1] != "value" and not found.orthogonal]
        left_out += [f"layer {layer}: {kind} neurons are left out, for a norm mixes them" for layer, kind in mixed]
        self.groups = [group for group in groups if (group.layer, group.kind) not in mixed]
        if not self.groups:
            raise ModelError(f"No neurons can be scored ({'; '.join(left_out[:2])}); choose other kinds.")
        approximated = [
            f"layer {layer}: {kind} neurons, the norm behind them is held as it is"
            for (layer, kind), found in self.directions.items()
            if (layer, kind) not in mixed and _is_held(kind, found)
        ]
        approximated += [
            f"layer {group.layer}: {group.kind} neurons, scored before the gate of the shared experts"
            for group in self.groups
            if group.kind.startswith("shared_experts.") and group.layer in _gated(lm)
        ]
        named = {"left_out": left_out, "approximated": approximated}
        self.notes: dict[str, Any] = {name: sentences for name, sentences in named.items() if sentences}
        self._outputs = OutputChanges(lm, self.groups)
        self._attending = {
            (group.layer, group.kind): number for number, group in enumerate(self.groups) if group.kind in CHANGES
        }

    @property
    def need_attention(self) -> bool:
        """Whether neurons are scored by more than what projections read."""
        return bool(self._attending)

    def reader(self, take: Callable[[list[torch.Tensor]], None]) -> Reader:
        """Gives the importances of every batch to `take`, as `of` does, where attention is not needed."""
        mask, tables = torch.empty(0), list[torch.Tensor]()

        def begin(batch: TokenBatch) -> torch.Tensor:
            nonlocal mask, tables
            mask, tables = batch.attention_mask, self._zeros(batch)
            return mask

        return Reader(
            begin,
            lambda inputs, _: self._outputs.add(inputs, mask, tables),
            lambda: take(tables),
            {name for name, _ in self._outputs.readers},
        )

    @torch.no_grad()
    def of(self, batch: TokenBatch) -> list[torch.Tensor]:
        """Importances (B, m) of every group for each prompt of a batch, fp32 (fp64 for a model in fp64)."""
        mask, tables = batch.attention_mask, self._zeros(batch)

        def see(attention: Attention) -> None:
            for kind, changes in CHANGES.items():
                if (number := self._attending.get((attention.layer, kind))) is not None:
                    for row, real in enumerate(_real_tokens(mask)):
                        found = changes(of_prompt(attention, row, real), self.directions[attention.layer, kind])
                        tables[number][row] = found.flatten()

        with ExitStack() as observed:
            if self._attending:
                observed.enter_context(observed_attention(self.lm, see))
            if self._outputs.readers:
                observed.enter_context(observed_inputs(self.lm, lambda inputs: self._outputs.add(inputs, mask, tables)))
            self.lm.model(
                input_ids=batch.input_ids,
                attention_mask=mask,
                position_ids=batch.position_ids,
                logits_to_keep=1,
                use_cache=False,
            )
        return tables

    def _zeros(self, batch: TokenBatch) -> list[torch.Tensor]:
        dtype = torch.promote_types(self.lm.model.dtype, torch.float32)
        rows, device = len(batch.attention_mask), batch.attention_mask.device
        return [torch.zeros(rows, group.size, dtype=dtype, device=device) for group in self.groups]


def _is_held(kind: str, found: Directions) -> bool:
    """Whether leaving out a neuron would change a norm that its importance takes as fixed."""
    return found.norm == "all heads" or (kind == "value" and found.norm == "head")


def _gated(lm: LanguageModel) -> set[int | None]:
    """Layers with a router of one row, which decides how much the shared experts count."""
    return {part.layer for part in lm.parts if part.role == "router" and part.shape[0] == 1}


def _real_tokens(mask: torch.Tensor) -> list[slice]:
    """Where the tokens of each row are; padding is on one side."""
    firsts, counts = mask.argmax(dim=1).tolist(), mask.sum(dim=1).tolist()
    return [slice(first, first + count) for first, count in zip(firsts, counts, strict=True)]
