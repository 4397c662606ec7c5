"""Safety-specific neurons: those without which a sublayer answers harmful prompts differently (Zhao et al., ICLR 2025).

The importance of a neuron for one prompt is the norm of the change of its sublayer's output, over all tokens of the
prompt, when the neuron is zeroed. `neuron_outputs.py` and `neuron_attention.py` have the formulas.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ballast.errors import UsageError
from ballast.locate.importance.neuron_importance import Importances
from ballast.locate.registry import Task, UnitsFound, register
from ballast.locate.rows import WeightedRow
from ballast.models.units import NEURON_KINDS, UnitGroup
from ballast.progress import track
from ballast.prompts.batches import collate
from ballast.prompts.chat import check_length, render
from ballast.regions import exact_fraction
from ballast.regions.metadata import Granularity

SELECTIONS = ("mean", "intersection", "frequency")


@register("neurons")
@dataclass(frozen=True)
class Neurons:
    """Settings of safety-specific neurons.

    Attributes:
        kinds: Kinds of neurons, as a tuple or with commas between them. Query and key neurons take most of the time.
        selection: `mean` leaves the choice to the selection of the region. `intersection` chooses the neurons that are
            among the top of their layer for every prompt, `frequency` those that are for a share `tau` of the prompts.
        attention_top: How many query, key, value or output neurons of a layer are its top for a prompt: a number of
            neurons, or a share of them.
        feed_forward_top: The same for feed-forward neurons; all experts of a layer are ranked together.
        tau: `frequency`: share of the prompts, or `auto` for the least share that chooses no more than `size`.
        size: `frequency` with `auto`: share of all neurons.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "neuron"
    reference: ClassVar[str] = "Zhao et al., ICLR 2025, OpenReview yR47RmND1m"
    fidelity: ClassVar[str] = (
        "reconstruction: importance as in the paper, the norm of the change of the sublayer's output without the "
        "neuron, exact in closed form (query and key: of the attention weights); ours: ranking by the mean over "
        "prompts of the share in the importance of the kind, since the paper's threshold is not published; chat "
        "template; biases go with their rows; gate, up and down of an inner neuron are one; before norms that follow a "
        "sublayer; a norm over all heads is held. Left out: the scores of the authors' code"
    )
    needs: ClassVar[str] = "harmful prompts"

    kinds: str | tuple[str, ...] = NEURON_KINDS
    selection: Literal["mean", "intersection", "frequency"] = "mean"
    attention_top: int | float = 0.25
    feed_forward_top: int | float = 0.14
    tau: float | Literal["auto"] = "auto"
    size: float = 0.01

    def __post_init__(self) -> None:
        """Take kinds with commas between them apart and refuse settings that cannot work."""
        texts = (self.kinds,) if isinstance(self.kinds, str) else self.kinds  # by name a method is given one in a tuple
        object.__setattr__(self, "kinds", tuple(kind.strip() for text in texts for kind in text.split(",")))
        if not self.kinds:
            raise UsageError(f"Give at least one kind of neurons; there are {', '.join(NEURON_KINDS)}.")
        for kind in self.kinds:
            if kind not in NEURON_KINDS:
                raise UsageError(f"There is no kind of neurons {kind!r}; use {', '.join(NEURON_KINDS)}.")
        if self.selection not in SELECTIONS:
            raise UsageError(f"There is no selection {self.selection!r}; use {', '.join(SELECTIONS)}.")
        if self.tau != "auto":
            exact_fraction(self.tau)
        exact_fraction(self.size)
        for top in (self.attention_top, self.feed_forward_top):
            if top <= 0 or (isinstance(top, float) and top > 1):
                raise UsageError(f"The top cannot be {top}; give a number of neurons or a share in (0, 1].")

    def score(self, task: Task) -> UnitsFound:
        """Score every neuron by its mean share of the importance of its kind; choose by `selection`.

        Raises:
            ModelError: No neuron of these kinds can be scored.
            PromptError: A prompt does not fit the model.
            UsageError: A top holds no neuron of a layer.
        """
        rows = [WeightedRow(prompt.id, render(task.lm.tokenizer, prompt.prompt), 0.0) for prompt in task.prompts]
        for row in rows:
            check_length(row.rendered, task.lm.context, row.id)
        rows.sort(key=lambda row: len(row.rendered.ids), reverse=True)
        importances = Importances(task.lm, tuple(self.kinds), len(rows[0].rendered.ids))
        tally = Tally(importances.groups, self)
        if importances.need_attention:
            batches = [rows[start : start + task.batch_size] for start in range(0, len(rows), task.batch_size)]
            for batch in track(batches, "Neurons"):
                tokens = collate([row.rendered for row in batch], task.lm.pad_id)
                tally.add(importances.of(tokens.to(task.lm.device)))
        else:
            task.inputs(rows, importances.reader(tally.add))
        notes = {"prompts_used": len(rows), **importances.notes}
        if unread := [group for group, sums in zip(tally.groups, tally.shares, strict=True) if not sums.any()]:
            notes["without_importance"] = [_named(group) for group in unread]
        scores = [(shares / len(rows)).float() for shares in tally.shares]
        if self.selection == "mean":
            return UnitsFound(importances.groups, scores, notes=notes)
        least = self.least_hits(tally)
        chosen = [(hits >= least).nonzero().flatten() for hits in tally.hits]
        return UnitsFound(importances.groups, scores, chosen, notes | {"least_prompts": least})

    def count(self, group: UnitGroup, size: int) -> int:
        """How many of the `size` neurons of one kind in one layer are its top.

        Raises:
            UsageError: None.
        """
        top = self.feed_forward_top if group.kind.endswith("feed_forward") else self.attention_top
        count = min(top, size) if isinstance(top, int) else math.floor(exact_fraction(top) * size)
        if not count:
            raise UsageError(f"The top {top} of {size} {group.kind} neurons is none; give a larger share.")
        return count

    def least_hits(self, tally: Tally) -> int:
        """For how many prompts a chosen neuron must be among the top."""
        if self.selection == "intersection":
            return tally.prompts
        if self.tau != "auto":
            return math.ceil(exact_fraction(self.tau) * tally.prompts)
        hits = torch.cat(tally.hits)
        most = exact_fraction(self.size) * len(hits)
        return next((least for least in range(1, tally.prompts) if int((hits >= least).sum()) <= most), tally.prompts)


class Tally:
    """Sums over prompts; the importances of single prompts are not kept.

    Attributes:
        groups: The neurons.
        shares: (m,) fp64 per group; sum over prompts of importance / sum of the importances of the kind.
        hits: (m,) int64 per group; for how many prompts a neuron was among the top of its kind in its layer.
        prompts: Number of prompts so far.
    """

    def __init__(self, groups: list[UnitGroup], settings: Neurons) -> None:
        """Begin with zeros."""
        self.groups, self.settings, self.prompts = groups, settings, 0
        self.shares = [torch.zeros(group.size, dtype=torch.float64) for group in groups]
        self.hits = [torch.zeros(group.size, dtype=torch.int64) for group in groups]

    def add(self, tables: list[torch.Tensor]) -> None:
        """Count in the (B, m) importances of a batch, one table per group."""
        tables = [table.cpu() for table in tables]
        self.prompts += len(tables[0])
        for members in self._families(layers=False):
            total = torch.stack([tables[number].double().sum(dim=1) for number in members]).sum(dim=0)
            for number in members:  # a kind without importance for a prompt, as keys for one token, has no shares
                self.shares[number] += (tables[number] / total.clamp_min(1e-300).unsqueeze(1)).sum(dim=0)
        if self.settings.selection == "mean":
            return
        for members in self._families(layers=True):
            together = torch.cat([tables[number] for number in members], dim=1)
            count = self.settings.count(self.groups[members[0]], together.shape[1])
            best = torch.zeros_like(together, dtype=torch.bool)
            best.scatter_(1, together.topk(count, dim=1).indices, True)
            best &= together > 0
            for number, part in zip(members, best.split([len(self.hits[n]) for n in members], dim=1), strict=True):
                self.hits[number] += part.sum(dim=0)

    def _families(self, *, layers: bool) -> Iterator[list[int]]:
        """Numbers of the groups that are ranked together: of one kind, in all layers or in each."""
        families: dict[tuple[str, int | None], list[int]] = defaultdict(list)
        for number, group in enumerate(self.groups):
            families[group.kind, group.layer if layers else None].append(number)
        yield from families.values()


def _named(group: UnitGroup) -> str:
    expert = "" if group.expert is None else f", expert {group.expert}"
    return f"layer {group.layer}{expert}: {group.kind}"
