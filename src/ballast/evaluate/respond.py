"""Responses for prompts that bring none: the model's own greedy answers, as far as judges agree on what they are.

For harmful prompts only refusals are kept, so that no harmful completion is ever written. For prompts that the caller
declares harmless only answers are kept, since what usefulness needs is read from them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ballast.errors import PromptError
from ballast.evaluate.answers import generate
from ballast.evaluate.measure import DEFAULT_JUDGES
from ballast.judges import Judge, Verdict, get_judge
from ballast.models import LanguageModel
from ballast.prompts import PromptSet, load_prompts
from ballast.prompts.overlap import shared_prompts

CUT = "no whole sentence"
WHOLE = re.compile(r".*[^\W\d][.!?][\"')\]]*(?=\s|$)", re.DOTALL)  # up to the last end of a sentence; "1." is none
HARMFUL_TOKENS = 64  # the embedded judge reads no more, so nothing is written that no judge has read
HARMLESS_TOKENS = 128


@dataclass(frozen=True)
class Responded:
    """A prompt set with the responses that were kept.

    Attributes:
        prompts: Harmful prompts without a response stay in the set; harmless ones do not.
        given: Prompts that brought a response; it is kept as it is.
        written: Prompts that got one.
        without: Why the others got none, counted: the verdict that was not wanted, or that an
            answer was cut before its first sentence ended.
    """

    prompts: PromptSet
    given: int
    written: int
    without: dict[str, int]


def respond(
    lm: LanguageModel,
    prompts: PromptSet,
    *,
    harmless: bool = False,
    system: str | None = None,
    judges: Sequence[str | Judge] = DEFAULT_JUDGES,
) -> Responded:
    """Let the model answer the prompts without response, and keep what every judge calls a refusal.

    Args:
        lm: The model.
        prompts: Harmful prompts, unless `harmless` is given.
        harmless: The prompts are harmless: keep what every judge calls an answer. Prompts of the built-in harmful set
            are refused. Answers may have 128 tokens, refusals 64; what is cut there ends with its last whole sentence.
        system: System message under which the model answers; it is not part of the result.
        judges: Those who must agree.

    Raises:
        PromptError: Prompts that are declared harmless are in the built-in harmful set, every prompt has a response, or
            no answer was kept.
    """
    if harmless:
        _refuse_harmful(prompts)
    asked = tuple(prompt for prompt in prompts if not prompt.response)
    if not asked:
        raise PromptError(f"Every prompt of {prompts.name} has a response; use the set as it is.")
    found, without = _kept(
        lm, replace(prompts, prompts=asked), harmless, system, [get_judge(judge) for judge in judges]
    )
    if not found:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in without.items())
        kind = "an answer" if harmless else "a refusal"
        raise PromptError(
            f"None of the {len(asked)} answers of {lm.name} to {prompts.name} is {kind} ({reasons}); give a system "
            "message (--system), another model, or a set with responses."
        )
    rows = (
        prompt.model_copy(update={"response": found[prompt.id]}) if prompt.id in found else prompt for prompt in prompts
    )
    kept = tuple(row for row in rows if row.response or not harmless)
    return Responded(replace(prompts, prompts=kept), len(prompts) - len(asked), len(found), dict(without))


def _refuse_harmful(prompts: PromptSet) -> None:
    shared = shared_prompts([load_prompts("builtin/harmful")], [prompts])
    if shared:
        raise PromptError(
            f"{shared[0][1]} of {prompts.name} is a prompt of builtin/harmful, so the set is not harmless; leave "
            "harmless (--harmless) away, or those prompts out."
        )


def _kept(
    lm: LanguageModel, asked: PromptSet, harmless: bool, system: str | None, judges: Sequence[Judge]
) -> tuple[dict[str, str], Counter[str]]:
    """Wanted answers by prompt id, and why there is none for the others."""
    tokens = HARMLESS_TOKENS if harmless else HARMFUL_TOKENS
    rows = generate(lm, asked, max_new_tokens=tokens, system=system)
    answers = [row.answer if row.finished else whole_sentences(row.answer) for row in rows]
    wanted = Verdict.COMPLIED if harmless else Verdict.REFUSED
    judged = [judge.judge([row.prompt for row in rows], answers) for judge in judges]
    found: dict[str, str] = {}
    without: Counter[str] = Counter()
    for row, answer, judgements in zip(rows, answers, zip(*judged, strict=True), strict=True):
        unwanted = [str(judgement.verdict) for judgement in judgements if judgement.verdict is not wanted]
        if row.answer and not answer:
            without[CUT] += 1
        elif unwanted:
            without[unwanted[0]] += 1
        else:
            found[row.id] = answer
    return found, without


def whole_sentences(text: str) -> str:
    """The beginning of a text, up to the last end of a sentence; empty if there is none."""
    found = WHOLE.match(text)
    return found.group() if found else ""
