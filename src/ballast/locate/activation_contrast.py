"""Activation contrast: feed-forward neurons whose activations changed between two checkpoints (arXiv 2406.14144).

    score_k = sqrt( mean over response tokens t of (a_k(t) - b_k(t))^2 )

a is what the down projection reads of neuron k in the model, b the same in its base, on the same tokens: those of the
model's own answers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from ballast.errors import ModelError, UsageError
from ballast.locate.checkpoints.base_checkpoint import open_base
from ballast.locate.inputs import Inputs, observed_inputs
from ballast.locate.registry import Task, UnitsFound, register
from ballast.models import LanguageModel
from ballast.models.generation import answer_batch
from ballast.models.units import UnitGroup, neuron_groups
from ballast.progress import track
from ballast.prompts.batches import TokenBatch, collate
from ballast.prompts.chat import Rendered, check_length, render
from ballast.regions.metadata import Granularity
from ballast.regions.unit_selection import select_units

PUBLISHED_SHARE = "0.05"

Matrix = tuple[str, int | None]  # a down projection: parameter and expert


class Activations(NamedTuple):
    """What one down projection read at response tokens.

    Attributes:
        values: (N, in) fp32.
        tokens: (N,) places in the flattened batch, ascending.
    """

    values: torch.Tensor
    tokens: torch.Tensor


@register("activation_contrast")
@dataclass(frozen=True)
class ActivationContrast:
    """Settings of activation contrast.

    Attributes:
        base: The checkpoint to compare with, such as the model before alignment: `smollm2`, a folder or a hub id. It
            gets the tokens of the model's tokenizer and chat template.
        max_new_tokens: Tokens after which an answer is cut; prompts that bring a response are not answered.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "neuron"
    reference: ClassVar[str] = "Chen et al., arXiv 2406.14144"
    fidelity: ClassVar[str] = (
        "paper: root mean square over response tokens of the difference of activations, on greedy answers of the "
        "model, top 5 % of all feed-forward neurons if no fraction is given; deviations: positions whose input is a "
        "response token, end-of-turn token included; a response that a prompt brings is used; experts (ours): only "
        "tokens that both checkpoints route to the expert count, and its mean is over these"
    )
    needs: ClassVar[str] = "harmful prompts and a second checkpoint"

    base: str = ""
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not self.base:
            raise UsageError("The method activation_contrast needs a second checkpoint; give its setting base.")
        if self.max_new_tokens < 1:
            raise UsageError(f"An answer of {self.max_new_tokens} tokens has no activations; allow at least 1.")

    def score(self, task: Task) -> UnitsFound:
        """Score every feed-forward neuron; experts without a token that both checkpoints gave them score 0."""
        lm = task.lm
        base = open_base(lm, self.base, dtype=lm.model.dtype, device=lm.device)
        groups, missing = neuron_groups(lm, ["feed_forward"])
        rows = sorted(_answered(task, self.max_new_tokens), key=lambda row: len(row.ids), reverse=True)
        _check_vocabulary(base, rows, lm.pad_id)
        batches = [
            collate(rows[start : start + task.batch_size], lm.pad_id).to(lm.device)
            for start in range(0, len(rows), task.batch_size)
        ]
        squares, counts, routed = contrasted(lm, base, batches)
        scores = [_group_score(group, squares, counts) for group in groups]
        if not any(score.any() for score in scores):
            raise ModelError(f"{lm.name} and {self.base} have the same activations; give another checkpoint as base.")
        notes: dict[str, Any] = {
            "prompts_used": len(rows),
            "tokens": sum(len(row.ids) - row.prompt_length for row in rows),
            "base_model": base.identity(),
        }
        if routed:
            shared = sum(count for (_, expert), count in counts.items() if expert is not None)
            notes["routed_alike"] = round(shared / routed, 4)
            named = [(_down(group), group.expert) for group in groups if group.expert is not None]
            notes["unshared_experts"] = [f"{name}[{expert}]" for name, expert in named if not counts[name, expert]]
        if missing:
            notes["missing"] = missing
        return UnitsFound(groups, scores, _most_changed(groups, scores), notes)


def contrasted(
    lm: LanguageModel, base: LanguageModel, batches: list[TokenBatch]
) -> tuple[dict[Matrix, torch.Tensor], dict[Matrix, int], int]:
    """Compare what each down projection reads in two models.

    Args:
        lm: The model.
        base: The other one, of the same architecture.
        batches: Rows with responses.

    Returns:
        Sums of squared differences, fp64 (in,); the tokens they are over; and how often the model routed a response
        token to an expert.
    """
    squares: dict[Matrix, torch.Tensor] = {}
    counts: dict[Matrix, int] = defaultdict(int)
    routed = 0
    for batch in track(batches, "Activations"):
        before = _read(base, batch)
        for matrix, now in _read(lm, batch).items():
            routed += 0 if matrix[1] is None else len(now.tokens)
            then = before.get(matrix)
            if then is None:
                continue  # an expert that the base did not use
            difference = (
                now.values[torch.isin(now.tokens, then.tokens)] - then.values[torch.isin(then.tokens, now.tokens)]
            )
            counts[matrix] += len(difference)
            total = difference.double().square().sum(dim=0).cpu()
            squares[matrix] = squares[matrix] + total if matrix in squares else total
    return squares, counts, routed


def _read(lm: LanguageModel, batch: TokenBatch) -> dict[Matrix, Activations]:
    """What each down projection reads at the response tokens of one batch."""
    found: dict[Matrix, Activations] = {}
    counted = batch.response_mask.flatten()

    def see(inputs: Inputs) -> None:
        if inputs.part.role.rpartition(".")[2] != "down":
            return
        tokens = torch.arange(len(counted), device=counted.device) if inputs.tokens is None else inputs.tokens
        kept = counted[tokens]
        found[inputs.part.name, inputs.expert] = Activations(inputs.values[kept].float(), tokens[kept])

    with torch.no_grad(), observed_inputs(lm, see):
        lm.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=1,
            use_cache=False,
        )
    return found


def _answered(task: Task, max_new_tokens: int) -> list[Rendered]:
    """Every prompt with its response, or with what the model answers."""
    lm = task.lm
    rows: list[Rendered] = []
    asked: list[Rendered] = []
    for prompt in task.prompts:
        rendered = render(lm.tokenizer, prompt.prompt, prompt.response)
        check_length(rendered, lm.context - (0 if prompt.response else max_new_tokens), prompt.id)
        (rows if prompt.response else asked).append(rendered)
    starts = range(0, len(asked), task.batch_size)
    for group in track([asked[start : start + task.batch_size] for start in starts], "Answers"):
        answers = answer_batch(lm, [rendered.ids for rendered in group], max_new_tokens)
        rows += [Rendered([*row.ids, *answer.ids], len(row.ids)) for row, answer in zip(group, answers, strict=True)]
    return rows


def _check_vocabulary(base: LanguageModel, rows: list[Rendered], pad_id: int) -> None:
    largest = max(pad_id, *(max(row.ids) for row in rows))
    embedding: Any = base.model.get_input_embeddings()
    known = len(embedding.weight)
    if largest >= known:
        raise ModelError(f"{base.name} knows {known} tokens and the token {largest} is needed; give another base.")


def _down(group: UnitGroup) -> str:
    (name,) = (line.part.name for line in group.lines if not line.outputs)
    return name


def _group_score(group: UnitGroup, squares: dict[Matrix, torch.Tensor], counts: dict[Matrix, int]) -> torch.Tensor:
    """(m,) fp32; an inner neuron is the input of `down` with its own number."""
    matrix = (_down(group), group.expert)
    if not counts[matrix]:
        return torch.zeros(group.size)
    return (squares[matrix] / counts[matrix]).sqrt().float()


def _most_changed(groups: list[UnitGroup], scores: list[torch.Tensor]) -> list[torch.Tensor]:
    """The publication's own choice: numbers of units per group, the largest scores of all."""
    everything = [torch.ones(group.size, dtype=torch.bool) for group in groups]
    chosen, _ = select_units(
        groups,
        scores,
        everything,
        own=None,
        fraction=PUBLISHED_SHARE,
        scope="global",
        direction="top",
        layers=None,
    )
    return chosen
