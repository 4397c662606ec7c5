"""Checks on the select prompts while hardening, and the choice of the step to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ballast.errors import UsageError
from ballast.evaluate.answers import generate
from ballast.judges import Judge, Verdict
from ballast.models import LanguageModel
from ballast.prompts import PromptSet


class Check(NamedTuple):
    """How the model stood after some steps, on prompts that are neither trained on nor tested on.

    Attributes:
        step: Optimizer steps done.
        attack_success_rate: Share of harmful prompts that were complied with.
        over_refusal: Share of harmless prompts that were refused.
        n_harmful: Harmful prompts that got a verdict.
        n_harmless: Harmless prompts that got a verdict.
    """

    step: int
    attack_success_rate: float
    over_refusal: float
    n_harmful: int
    n_harmless: int

    @property
    def scored(self) -> bool:
        """Whether both rates rest on answers with a verdict; without any they are 0 and say nothing."""
        return self.n_harmful > 0 and self.n_harmless > 0


def check(
    lm: LanguageModel, judge: Judge, harmful: PromptSet, harmless: Sequence[PromptSet], step: int, max_new_tokens: int
) -> Check:
    """Answer the select prompts and judge the answers."""
    complied, n_harmful = _count(lm, judge, [harmful], max_new_tokens, Verdict.COMPLIED)
    refused, n_harmless = _count(lm, judge, harmless, max_new_tokens, Verdict.REFUSED)
    return Check(step, complied / max(1, n_harmful), refused / max(1, n_harmless), n_harmful, n_harmless)


def _count(lm: LanguageModel, judge: Judge, sets: Sequence[PromptSet], tokens: int, wanted: Verdict) -> tuple[int, int]:
    completions = [row for prompts in sets for row in generate(lm, prompts, max_new_tokens=tokens)]
    judged = judge.judge([row.prompt for row in completions], [row.answer for row in completions])
    scored = [row.verdict for row in judged if row.verdict is not Verdict.UNSCORED]
    return sum(verdict is wanted for verdict in scored), len(scored)


def require_scored(untuned: Check) -> None:
    """Refuse to tune by checks that say nothing.

    Raises:
        UsageError: No answer of the untuned model to the harmful, or to the harmless, select prompts got a verdict.
    """
    if not untuned.scored:
        kind = "harmless" if untuned.n_harmful else "harmful"
        raise UsageError(
            f"No answer to the {kind} select prompts got a verdict, so no step can be chosen; allow longer answers "
            "(check_tokens), which a model that thinks first needs, or take another judge or other select prompts."
        )


def choose(checks: Sequence[Check], budget: float) -> Check:
    """The check with the lowest attack success whose over-refusal rose by at most `budget`.

    Of equals the one with the lowest over-refusal, then the earliest. If no step that lowered attack success is within
    the budget, the one of them with the smallest rise; if none lowered it, the untuned model. A check without a verdict
    on either side is never chosen.

    Args:
        checks: The first is the untuned model.
        budget: Largest rise of over-refusal against the first, as a share.
    """
    lowered = [row for row in checks[1:] if row.scored and row.attack_success_rate < checks[0].attack_success_rate]
    within = [row for row in lowered if is_within(row, checks[0], budget)]
    if within:
        return min(within, key=lambda row: (row.attack_success_rate, row.over_refusal, row.step))
    return min(lowered, key=lambda row: (row.over_refusal, row.attack_success_rate, row.step), default=checks[0])


def is_within(row: Check, untuned: Check, budget: float) -> bool:
    """Whether over-refusal rose by at most `budget`, however the sum is rounded."""
    return row.over_refusal <= untuned.over_refusal + budget + 1e-12


def reaches(row: Check, untuned: Check, target: float | None, budget: float) -> bool:
    """Whether attack success is at `target` or below with over-refusal within `budget`, both seen on scored answers."""
    if target is None or not row.scored:
        return False
    return row.attack_success_rate <= target + 1e-12 and is_within(row, untuned, budget)


def reason(chosen: Check, checks: Sequence[Check], budget: float, target: float | None = None) -> str:
    """Why this step was kept, for the report."""
    if reaches(chosen, checks[0], target, budget):
        return (
            f"hardening stopped here, at the target of {target:.0%} attack success on the select prompts with "
            f"over-refusal up by at most {budget:.0%}"
        )
    missed = "" if target is None else f"; the target of {target:.0%} attack success was not reached"
    return _rule(chosen, checks, budget) + missed


def _rule(chosen: Check, checks: Sequence[Check], budget: float) -> str:
    if is_within(chosen, checks[0], budget):
        return f"lowest attack success on the select prompts with over-refusal up by at most {budget:.0%}"
    rise = chosen.over_refusal - checks[0].over_refusal
    return (
        f"no step kept the rise of over-refusal on the select prompts within {budget:.0%}; "
        f"this is the one with the smallest rise, {rise:.1%}"
    )
