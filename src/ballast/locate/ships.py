"""SHIPS: how far the next token's distribution moves when one attention head is silenced (arXiv 2410.13708)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ballast.errors import NumericalError
from ballast.locate.heads.repeated_passes import prompt_batches, repeated_passes
from ballast.locate.heads.silence import SilenceMode, check_head_settings, scorable_heads, silenced_heads
from ballast.locate.registry import Task, UnitsFound, register
from ballast.models.units import KeyValueRule
from ballast.progress import track
from ballast.regions.metadata import Granularity


@register("ships")
@dataclass(frozen=True)
class Ships:
    """Settings of SHIPS.

    Attributes:
        mode: How a head is silenced: `zero_out` sets what it gives to the output projection to zero; `scale_query`,
            `scale_key` and `scale_value` multiply these of the head by 1e-5.
        key_value: When key and value rows belong to the region: if `all_selected` query heads that share them are
            selected, if `any` of them is, or `never`.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "head"
    reference: ClassVar[str] = "Zhou et al., ICLR 2025, arXiv 2410.13708"
    fidelity: ClassVar[str] = (
        "paper: KL divergence of the next token's distribution without the head from that with it, at the last prompt "
        "token; deviations: mean over prompts; a head is zeroed by default (ours) where the published code scales by "
        "1e-5; queries and keys are scaled behind rotation and norm; one head at a time also where heads share keys"
    )
    needs: ClassVar[str] = "harmful prompts"

    mode: SilenceMode = "zero_out"
    key_value: KeyValueRule = "all_selected"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        check_head_settings(self.mode, self.key_value)

    def score(self, task: Task) -> UnitsFound:
        """Score every head; one pass per head and batch, from the head's block on."""
        groups, missing = scorable_heads(task.lm, self.key_value)
        scores = [torch.zeros(group.size, dtype=torch.float64) for group in groups]
        batches = prompt_batches(task.lm, task.prompts, task.batch_size)
        with silenced_heads(task.lm, groups, self.mode) as silenced, repeated_passes(task.lm) as passes:
            for batch in track(batches, "Heads"):
                whole = passes.full(batch).logits
                for group, found in zip(groups, scores, strict=True):
                    for head in range(group.size):
                        silenced.add((group.layer, head))
                        without = passes.again(group.layer).logits
                        silenced.remove((group.layer, head))
                        found[head] += divergence(whole, without).sum().item() / len(task.prompts)
        notes = {"prompts_used": len(task.prompts)} | ({"missing": missing} if missing else {})
        return UnitsFound(groups, [found.float() for found in scores], notes=notes)


def divergence(whole: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats, fp64 (B,), of the distributions p of `whole` and q of `without`, logits (B, V).

    Raises:
        NumericalError: It is not finite.
    """
    before, after = whole.double().log_softmax(dim=-1), without.double().log_softmax(dim=-1)
    found = (before.exp() * (before - after)).sum(dim=-1).clamp_min(0)  # rounding can leave -1e-16
    if not torch.isfinite(found).all():
        raise NumericalError("A divergence is not finite; open the model in bfloat16 or float32.")
    return found
