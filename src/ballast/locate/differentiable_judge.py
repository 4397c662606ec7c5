"""ESI with a judge that is differentiated: how the verdict on the model's own answers moves with each weight.

    ESI_i = | sigma(m(i)) * dS/dtheta_i |,    S = mean over prompts of F(judge(prompt, answer))       (arXiv 2604.08297)

The answer is text, so its tokens are relaxed into mixtures (`relaxation.py`), shown to the judge in its own tokens
(`alignment.py`), and the gradient of the verdict is carried back to the logits (`soft_answers.py`). It does not flow
through the tokens that were fed back: each position is relaxed given what was generated before it, which is a bias.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch

from ballast.errors import JudgeError, PromptError, UsageError
from ballast.judges import JUDGES
from ballast.locate.engine import accumulate_loss, only_trainable
from ballast.locate.impact import check_sigma_scope, expected_impact
from ballast.locate.registry import Found, Task, register
from ballast.locate.soft.alignment import Bridge, vocabulary_map
from ballast.locate.soft.guard import Guard
from ballast.locate.soft.reference_code import Pairing, inverse_map
from ballast.locate.soft.relaxation import Kind, Relaxation
from ballast.locate.soft.soft_answers import SATURATED, Examiner, Findings, SoftAnswer, verdict_loss
from ballast.locate.soft.soft_judge import EmbeddedSoftJudge, Objective, SoftJudge, embedding_table
from ballast.locate.soft.token_bytes import spelled_text, token_bytes
from ballast.models.generation import answer_batch
from ballast.models.sigma import SigmaScope
from ballast.progress import track
from ballast.prompts import Prompt
from ballast.prompts.chat import Rendered, check_length, render
from ballast.regions.metadata import Granularity

TOP_POSITIONS = 0.05
FLAGS = (
    "response_in_user_slot",
    "saturated_pseudo_logits",
    "inverse_vocabulary_map",
    "position_truncation",
    "bos_shift",
    "drop_last_token",
    "model_dtype_accumulation",
)
REFERENCE_CODE: dict[str, Any] = {
    **dict.fromkeys(FLAGS, True),
    "objective": "safe_logit",
    "sigma_scope": "tensor",
}


@register("esi_differentiable_judge")
@dataclass(frozen=True)
class DifferentiableJudge:
    """Settings of ESI by a differentiable judge.

    Attributes:
        judge: `embedded`, or a guard model: a folder or a hub id of a causal language model with a chat template.
        relaxation: `gumbel`, `softmax`, `straight_through` or `straight_through_gumbel`, see `relaxation.py`.
        tau: Temperature of the relaxation.
        draws: Draws of the noise per answer; gradients are averaged over them.
        objective: `log_odds` of safe against unsafe, `log_probability` or `probability` of safe, or `safe_logit`.
        position_weight: `sum` is the derivative of F; `mean` divides it by the number of tokens of the answer.
        max_new_tokens: Tokens after which an answer is cut; the embedded judge reads no more than 64 of its own.
        safe: How the guard writes the verdict safe.
        unsafe: How it writes the verdict unsafe.
        verdict_prefix: What it always writes before the verdict, such as line breaks.
        sigma_scope: What has one sigma, see `esi`.
        variant: `reference_code` switches on all that follows, `safe_logit` and the sigma of whole tensors: the
            peculiarities of the authors' code.
        response_in_user_slot: Show the guard the answer alone.
        saturated_pseudo_logits: The judge reads the generated tokens as saturated logits, and the gradient is taken
            with respect to these, see `pseudo_logits.py`.
        inverse_vocabulary_map: Spell the judge's tokens in the target's, from their names, see `reference_code.py`.
        position_truncation: Pair positions by their number instead of by bytes.
        bos_shift: Leave the judge's begin-of-text token in front of the answer, which shifts its rows by one.
        drop_last_token: Do not score the last generated token.
        model_dtype_accumulation: Add gradients up in the dtype of the weights, one prompt at a time.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "Qi et al., Findings of ACL 2026, arXiv 2604.08297"
    fidelity: ClassVar[str] = (
        "reconstruction: score, sigma and the idea of a differentiable judge as in the paper; Gumbel relaxation with "
        "tau 0.3 given the generated prefix as in the authors' code (no gradient through fed-back tokens: a bias); "
        "ours: the judge reads the mixture in its own template and, also where the vocabularies coincide, in its own "
        "tokens, aligned by bytes; log-odds, 64 new tokens instead of 256, the template's system message, fp32 sums "
        "divided by the number of prompts, a gradient that is not finite is an error; variant reference_code switches "
        "the peculiarities of the authors' code on, but include_lm_head, name_filter, 256 tokens, the system "
        "message and the global random state"
    )
    needs: ClassVar[str] = "harmful prompts; a judge with weights"

    judge: str = "embedded"
    relaxation: Kind = "gumbel"
    tau: float = 0.3
    draws: int = 1
    objective: Objective = "log_odds"
    position_weight: Literal["sum", "mean"] = "sum"
    max_new_tokens: int = 64
    safe: str = "safe"
    unsafe: str = "unsafe"
    verdict_prefix: str = ""
    sigma_scope: SigmaScope = "matrix"
    variant: Literal["ours", "reference_code"] = "ours"
    response_in_user_slot: bool = False
    saturated_pseudo_logits: bool = False
    inverse_vocabulary_map: bool = False
    position_truncation: bool = False
    bos_shift: bool = False
    drop_last_token: bool = False
    model_dtype_accumulation: bool = False

    def __post_init__(self) -> None:
        """Write the variant out, and refuse settings that cannot work."""
        if self.variant not in ("ours", "reference_code"):
            raise UsageError(f"There is no variant {self.variant!r}; use ours or reference_code.")
        if self.variant == "reference_code":
            for name, value in REFERENCE_CODE.items():
                object.__setattr__(self, name, value)
        Relaxation(self.relaxation, self.tau, self.draws, 0)
        if self.objective not in get_args(Objective):
            raise UsageError(f"There is no objective {self.objective!r}; use {', '.join(get_args(Objective))}.")
        if self.position_weight not in ("sum", "mean"):
            raise UsageError(f"There is no position weight {self.position_weight!r}; use sum or mean.")
        check_sigma_scope(self.sigma_scope)
        for flag in FLAGS:
            if getattr(self, flag) not in (False, True):
                raise UsageError(f"{flag} is {getattr(self, flag)!r}; it must be 0 or 1.")
        guard = (self.safe, self.unsafe, self.verdict_prefix, self.response_in_user_slot)
        if self.judge == "embedded" and guard != ("safe", "unsafe", "", False):
            raise UsageError("The judge embedded has no verdict words and no template; give such settings to a guard.")
        if self.judge in JUDGES and self.judge != "embedded":
            raise JudgeError(f"The judge {self.judge} has no gradient; use embedded, or a folder or hub id of a guard.")

    def score(self, task: Task) -> Found:
        """Score every eligible weight by ESI.

        Raises:
            PromptError: No answer has a verdict, or a prompt is too long.
            JudgeError: The judge has no gradient, or the guard no verdict tokens.
            ModelError: The judge cannot be opened, or a tokenizer is of an unknown kind.
        """
        answers, bridge, notes = self._judged(task)
        scores = accumulate_loss(
            task.lm,
            answers,
            partial(verdict_loss, bridge),
            fold="sum",
            batch_size=1 if self.model_dtype_accumulation else task.batch_size,
            rounded=self.model_dtype_accumulation,
            checkpoint=task.checkpoint,
            checkpoint_seconds=task.checkpoint_seconds,
        )
        return Found(scores, {**notes, "sigma": expected_impact(task.lm, scores, self.sigma_scope)})

    def _open(self, device: torch.device) -> SoftJudge:
        if self.judge == "embedded":
            return EmbeddedSoftJudge.open()
        return Guard.open(
            self.judge,
            device,
            safe=self.safe,
            unsafe=self.unsafe,
            verdict_prefix=self.verdict_prefix,
            response_in_user_slot=self.response_in_user_slot,
        )

    def _judged(self, task: Task) -> tuple[list[SoftAnswer], Bridge, dict[str, Any]]:
        """Generate, relax and judge the answers; the judge is closed when this is done."""
        lm, judge = task.lm, self._open(task.lm.device)
        own = token_bytes(lm.tokenizer)
        table = embedding_table(judge.lm).to(lm.device)
        width = lm.model.get_output_embeddings().weight.shape[0]
        if self.inverse_vocabulary_map:
            bridge = Bridge(table, inverse_map(lm.tokenizer, judge.lm.tokenizer, width, len(table), lm.device))
        else:
            bridge = Bridge(table, vocabulary_map(own, judge.vocabulary, width, len(table), lm.device))
        relaxation = Relaxation(self.relaxation, self.tau, self.draws, task.seed)
        pairing = Pairing(self.position_truncation, self.bos_shift, self.drop_last_token)
        examiner = Examiner(lm, judge, bridge, relaxation, self.objective, pairing, self.saturated_pseudo_logits)
        answers: list[SoftAnswer] = []
        findings: list[Findings] = []
        dropped: dict[str, list[str]] = defaultdict(list)
        with only_trainable(judge.lm.model, set()):
            for prompt, rendered in self._generated(task):
                pieces = own.pieces(rendered.ids[rendered.prompt_length :])
                found = self._examined(examiner, prompt, rendered, pieces)
                if isinstance(found, str):
                    dropped[found].append(prompt.id)
                    continue
                positions = len(pieces) if self.position_weight == "mean" else 1
                answers.append(dataclasses.replace(found[0], weight=1 / positions))
                findings.append(found[1])
        if not answers:
            reasons = ", ".join(f"{reason}: {len(ids)}" for reason, ids in dropped.items())
            raise PromptError(
                f"The judge {self.judge} has no verdict on any answer ({reasons}); use another judge, other verdict "
                "words or other prompts."
            )
        answers = [dataclasses.replace(answer, weight=answer.weight / len(answers)) for answer in answers]
        notes = {
            "prompts_used": len(answers),
            "prompts_dropped": dict(dropped),
            "judge_model": judge.identity(),
            "alignment": bridge.vocabularies.kind,
            "tokens_without_counterpart": bridge.vocabularies.without_counterpart,
            "safety": round(sum(found.value for found in findings) / len(findings), 6),
            "saturated_positions": _saturated_share(findings),
            "gradient_in_top_positions": _top_share(answers, findings),
        }
        return answers, bridge, notes

    def _generated(self, task: Task) -> Iterator[tuple[Prompt, Rendered]]:
        """Each prompt with its greedy answer."""
        rendered = [render(task.lm.tokenizer, prompt.prompt) for prompt in task.prompts]
        for prompt, row in zip(task.prompts, rendered, strict=True):
            check_length(row, task.lm.context - self.max_new_tokens, prompt.id)
        starts = range(0, len(rendered), task.batch_size)
        for start in track(starts, "Judging answers"):
            group = slice(start, start + task.batch_size)
            found = answer_batch(task.lm, [row.ids for row in rendered[group]], self.max_new_tokens)
            for prompt, row, answer in zip(task.prompts.prompts[group], rendered[group], found, strict=True):
                yield prompt, Rendered([*row.ids, *answer.ids], len(row.ids))

    def _examined(
        self, examiner: Examiner, prompt: Prompt, rendered: Rendered, pieces: list[bytes]
    ) -> tuple[SoftAnswer, Findings] | str:
        """The judged answer, or why there is none."""
        decoded = examiner.lm.tokenizer.decode(rendered.ids[rendered.prompt_length :], skip_special_tokens=True)
        spelled = spelled_text(pieces, leading_space=str(decoded).startswith(" "))
        if spelled is None:
            return "answer that is no text"
        text, spans = spelled
        reading = examiner.judge.read(prompt.prompt, text)
        if isinstance(reading, str):
            return reading
        check_length(Rendered(reading.ids, len(reading.ids)), examiner.judge.lm.context, prompt.id)
        return examiner.examine(prompt.id, rendered, spans, reading)


def _saturated_share(findings: list[Findings]) -> float:
    """Share of the positions whose largest probability leaves almost no gradient."""
    largest = torch.cat([found.largest for found in findings])
    return round(float((largest > SATURATED).double().mean()), 4)


def _top_share(answers: list[SoftAnswer], findings: list[Findings]) -> float:
    """Share of |dF/dz| that the 5 % of positions with most of it carry."""
    pairs = zip(answers, findings, strict=True)
    sizes = torch.cat([answer.weight * found.sizes.double() for answer, found in pairs]).sort(descending=True).values
    top = sizes[: math.ceil(TOP_POSITIONS * len(sizes))]
    return round(float(top.sum() / sizes.sum()), 4) if sizes.any() else 0.0
