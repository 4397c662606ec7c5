"""Settings of hardening, each with its unit and where its default comes from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ballast.errors import UsageError

Objective = Literal["cross_entropy", "preference"]
Variant = Literal["ours", "reference_code"]
LATER = ("target_asr", "objective", "variant")  # settings that folders of earlier versions do not name
REFERENCE_CODE: dict[str, Any] = {
    "learning_rate": 3e-5,
    "warmup": 0.03,
    "refusals_per_step": 4,
    "answers_per_step": 0,
    "endings_per_step": 0,
    "micro_batch": 1,
    "help_weight": 0.0,
    "weight_decay": 0.01,
    "objective": "cross_entropy",
}


@dataclass(frozen=True)
class HardenSettings:
    """How `harden` tunes (SET, arXiv 2604.08297, with our choices where the paper leaves them open).

    Attributes:
        steps: Optimizer steps; the paper's 100.
        learning_rate: Peak learning rate of AdamW.
        warmup: Share of the steps in which the rate rises linearly; then it falls along a cosine to a tenth.
        refusals_per_step: Harmful prompts with refusals in one step.
        answers_per_step: Harmless prompts with the original model's answers in one step; the twins of the step's
            harmful prompts come first.
        endings_per_step: Ends of refusals in one step, without which refusals repeat until the token limit; and as many
            ends of sentences in the original model's answers, without which answers end where a refusal would.
        refusal_tokens: Tokens of a refusal that are learnt; whether to refuse is decided in the first few.
        micro_batch: Rows per backward pass; the step's gradient does not depend on it beyond rounding.
        help_weight: Factor of the divergence from the original model on harmless prompts.
        answer_tokens: Tokens of the original's answers to stay close to; the first ones decide whether it helps.
        weight_decay: Decoupled decay of the tuned entries; 0, since decay drags safety weights to zero.
        clip: Largest gradient norm over the tuned entries.
        check_every: Steps between two checks on the select prompts.
        check_tokens: Tokens of the answers in a check.
        judge: Judge of the checks; not the one that measures, so the result is not tuned to its judge.
        max_over_refusal_rise: How far refusal of harmless select prompts may rise, as a share; the step with the
            lowest attack success among those within this budget is kept, or the one with the smallest rise.
        target_asr: Stop at the first check whose attack success is no higher than this share, with over-refusal within
            the budget; None does all steps.
        objective: `cross_entropy` learns refusals; `preference` prefers them to what the model says itself (DPO).
        variant: `reference_code` switches to what the authors' code does, for comparison only: the settings of
            `REFERENCE_CODE`, the text and the weights of `reference_code.py`, and a cosine that ends at zero. Another
            value for one of these is refused, but for the default, which cannot be told from one that was not given;
            `of_given` can tell.
        seed: Seed of the order of the rows.
    """

    steps: int = 100
    learning_rate: float = 1e-3
    warmup: float = 0.05
    refusals_per_step: int = 16
    answers_per_step: int = 40
    endings_per_step: int = 4
    refusal_tokens: int = 5
    micro_batch: int = 16
    help_weight: float = 24.0
    answer_tokens: int = 4
    weight_decay: float = 0.0
    clip: float = 1.0
    check_every: int = 5
    check_tokens: int = 16
    judge: str = "keyword"
    max_over_refusal_rise: float = 0.07
    target_asr: float | None = None
    objective: Objective = "cross_entropy"
    variant: Variant = "ours"
    seed: int = 0

    def __post_init__(self) -> None:
        """Write the variant out, and refuse values that cannot work."""
        for name, kind in (("objective", Objective), ("variant", Variant)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"There is no {name} {getattr(self, name)!r}; use {' or '.join(get_args(kind))}.")
        if self.variant == "reference_code":
            self._write_out()
        counts = ("steps", "refusals_per_step", "refusal_tokens", "micro_batch", "answer_tokens")
        for name in (*counts, "check_every", "check_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"The setting {name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise UsageError(f"The setting {name} is {getattr(self, name)}; it must be above 0.")
        for name in ("help_weight", "weight_decay", "max_over_refusal_rise", "answers_per_step", "endings_per_step"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"The setting {name} is {getattr(self, name)}; it must not be negative.")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"The setting warmup is {self.warmup}; it is a share of the steps, in [0, 1).")
        if self.target_asr is not None and not 0 <= self.target_asr < 1:
            raise UsageError(f"The setting target_asr is {self.target_asr}; it is a share of prompts, in [0, 1).")

    @classmethod
    def of_given(cls, **given: Any) -> HardenSettings:
        """Settings by name, of which None is not given; one that the variant fixes at another value is refused.

        Raises:
            UsageError: A setting cannot work, or was given against the variant, be it the default.
        """
        named = {name: value for name, value in given.items() if value is not None}
        if named.get("variant") == "reference_code":
            for name in named.keys() & REFERENCE_CODE.keys():
                _refuse_other(name, named[name])
        return cls(**named)

    def _write_out(self) -> None:
        for field in dataclasses.fields(self):
            if field.name in REFERENCE_CODE:
                if getattr(self, field.name) != field.default:
                    _refuse_other(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, REFERENCE_CODE[field.name])

    def recorded(self) -> dict[str, Any]:
        """As `run.json` keeps them: later settings only if they are not at their defaults, so old folders continue."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in LATER or value != defaults[name]
        }

    def rate(self, step: int) -> float:
        """The learning rate of a step (0-based)."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        progress = (step - rising) / max(1, self.steps - rising)
        last = 0.1 if self.variant == "ours" else 0.0
        return self.learning_rate * (last + (1 - last) / 2 * (1 + math.cos(math.pi * progress)))


def _refuse_other(name: str, given: Any) -> None:
    fixed = REFERENCE_CODE[name]
    if given != fixed:
        raise UsageError(
            f"The variant reference_code fixes {name} at {fixed}, so {given} cannot be used; leave it out."
        )
