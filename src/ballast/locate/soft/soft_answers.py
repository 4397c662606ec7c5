"""From an answer to the gradient of its verdict: what the judge says of the tokens, and what that asks of the logits.

Three phases, which never share a graph. (A) The target's logits for its own answer, without gradient, and from them
what the judge reads. (B) The judge's verdict, and its gradient G with respect to the embeddings that it read; only G is
kept. (C) The target's logits again, now with gradient: D from G, dF/dz from D, and one backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ballast.errors import NumericalError
from ballast.locate.soft import pseudo_logits
from ballast.locate.soft.alignment import Alignment, Bridge
from ballast.locate.soft.reference_code import Pairing
from ballast.locate.soft.relaxation import Relaxation
from ballast.locate.soft.soft_judge import Objective, Reading, SoftJudge, safety
from ballast.locate.soft.token_bytes import Span
from ballast.models import LanguageModel
from ballast.models.fingerprint import tensor_fingerprint
from ballast.models.likelihood import response_logits
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered

SATURATED = 1 - 1e-3  # a position whose largest probability is above this has almost no gradient
LARGEST_OUTSIDE = 0.5  # probability of saying neither safe nor unsafe


@dataclass(frozen=True, eq=False)
class SoftAnswer:
    """An answer with what the judge asks of it.

    Attributes:
        id: The prompt's id.
        rendered: Prompt and answer, up to the last token that the judge reads; T tokens of the answer.
        alignment: Between the answer's tokens and the judge's.
        gradients: G of each draw, (S, d) on the CPU.
        relaxation: How the answer was relaxed.
        weight: Factor of F in the loss.
        saturated: (S,) the judge's tokens, if it read them as saturated logits.
        translation: Kind of the map between the vocabularies.
    """

    id: str
    rendered: Rendered
    alignment: Alignment
    gradients: tuple[torch.Tensor, ...]
    relaxation: Relaxation
    weight: float = 1.0
    saturated: torch.Tensor | None = None
    translation: str = ""

    @property
    def ids(self) -> torch.Tensor:
        """(T,) tokens of the answer."""
        return torch.tensor(self.rendered.ids[self.rendered.prompt_length :])

    @property
    def work(self) -> list[Any]:
        """See `engine.Row`."""
        settings: list[Any] = [self.relaxation.kind, self.relaxation.tau, self.relaxation.seed, self.weight]
        settings += [self.translation, None if self.saturated is None else self.saturated.tolist()]
        settings += [[str(interval), tensor_fingerprint(shares)] for interval, shares in self.alignment.items()]
        gradients = [tensor_fingerprint(gradient) for gradient in self.gradients]
        return [self.id, self.rendered.ids, self.rendered.prompt_length, *settings, gradients]


class Judged(NamedTuple):
    """One verdict of phase B.

    Attributes:
        value: F.
        gradient: G, (S, d) on the CPU.
        outside: Probability that the judge says neither safe nor unsafe.
    """

    value: float
    gradient: torch.Tensor
    outside: float


class Findings(NamedTuple):
    """What phase B saw of one answer.

    Attributes:
        value: F, mean over draws.
        largest: (N,) largest probability at each position that the judge reads, all draws.
        sizes: (N,) sum over the vocabulary of |dF/dz| there.
    """

    value: float
    largest: torch.Tensor
    sizes: torch.Tensor


def verdict_loss(bridge: Bridge, lm: LanguageModel, answers: Sequence[SoftAnswer]) -> torch.Tensor:
    """Phase C: a scalar whose gradient with respect to the weights is that of the weighted sum of F.

    Args:
        bridge: Between the target and the judge.
        lm: The target.
        answers: Judged answers.

    Raises:
        NumericalError: It is not finite.
    """
    batch = collate([answer.rendered for answer in answers], lm.pad_id).to(lm.device)
    logits = response_logits(lm.model, batch.input_ids, batch.attention_mask, batch.response_mask)
    parts = logits.detach().split([len(answer.ids) for answer in answers])
    wanted = [_logit_gradient(bridge, answer, part) for answer, part in zip(answers, parts, strict=True)]
    loss = (torch.cat(wanted).to(logits.dtype) * logits).sum()
    if not torch.isfinite(loss):
        named = ", ".join(answer.id for answer in answers[:4])
        raise NumericalError(f"The gradient of {named} is not finite; open the model in bfloat16 or float32.")
    return loss


def _logit_gradient(bridge: Bridge, answer: SoftAnswer, logits: torch.Tensor) -> torch.Tensor:
    """Weighted dF/dz (T, V), mean over draws, from the target's logits z (T, V)."""
    logits = logits.to(bridge.table.dtype)
    ids = answer.ids.to(logits.device)
    total = torch.zeros_like(logits)
    for draw, gradient in enumerate(answer.gradients):
        p = answer.relaxation.probabilities(logits, answer.id, draw)
        pulled = bridge.pull_back(gradient.to(logits.device), ids, answer.alignment, answer.saturated)
        total += answer.relaxation.logit_gradient(p, pulled)
    return total * (answer.weight / len(answer.gradients))


@dataclass(frozen=True, eq=False)
class Examiner:
    """Phases A and B for one answer at a time.

    Attributes:
        lm: The target.
        judge: The judge; its weights need no gradient while this works.
        bridge: Between the two.
        relaxation: How tokens are relaxed.
        objective: What of the verdict is differentiated.
        pairing: How positions meet the judge's tokens.
        saturated: The judge reads its own tokens as saturated logits, whatever the relaxation.
    """

    lm: LanguageModel
    judge: SoftJudge
    bridge: Bridge
    relaxation: Relaxation
    objective: Objective
    pairing: Pairing = field(default_factory=Pairing)
    saturated: bool = False

    def examine(
        self, prompt_id: str, rendered: Rendered, spans: Sequence[Span], reading: Reading
    ) -> tuple[SoftAnswer, Findings] | str:
        """Judge a relaxed answer and keep the judge's gradient.

        Args:
            prompt_id: The prompt's id.
            rendered: Prompt and answer.
            spans: Of the answer's tokens, in the bytes of its text.
            reading: What the judge reads of that text.

        Returns:
            The answer, ready for phase C, and what was seen; a text says why there is no verdict.

        Raises:
            NumericalError: A logit or a gradient is not finite.
        """
        reading = self.pairing.reading(reading, self.judge.lm)
        alignment = self._aligned(spans, reading)
        counted = torch.stack([shares.sum(0) for shares in alignment.values()]).sum(0) > 0  # (T,)
        if not counted.any():
            return "answer without a token that the judge reads"
        length = 1 + int(counted.nonzero().max())
        alignment = {interval: shares[:, :length] for interval, shares in alignment.items()}
        rendered = Rendered(rendered.ids[: rendered.prompt_length + length], rendered.prompt_length)
        counted = counted[:length]
        logits = self._logits(rendered)
        tokens = torch.tensor(reading.ids[reading.begin : reading.begin + len(reading.spans)])
        saturated, kind = tokens if self.saturated else None, self.bridge.vocabularies.kind
        answer = SoftAnswer(prompt_id, rendered, alignment, (), self.relaxation, saturated=saturated, translation=kind)
        ids = answer.ids.to(logits.device)
        verdicts: list[Judged] = []
        largest, sizes = [], []
        for draw in range(self.relaxation.draws):
            p = self.relaxation.probabilities(logits, prompt_id, draw)
            if verdicts and (self.saturated or not self.relaxation.soft):
                verdicts.append(verdicts[0])  # what was generated is the same in every draw
            else:
                verdicts.append(self._judged(p, ids, alignment, reading))
            gradient = verdicts[-1].gradient.to(logits.device)
            pulled = self.bridge.pull_back(gradient, ids, alignment, saturated)
            size = self.relaxation.logit_gradient(p, pulled).abs().sum(1)
            largest.append(p.amax(1)[counted].cpu())
            sizes.append(size[counted].cpu())
        if sum(verdict.outside for verdict in verdicts) / len(verdicts) > LARGEST_OUTSIDE:
            return "verdict neither safe nor unsafe"
        findings = Findings(
            sum(verdict.value for verdict in verdicts) / len(verdicts), torch.cat(largest), torch.cat(sizes)
        )
        if not findings.sizes.isfinite().all():
            raise NumericalError(f"The gradient of {prompt_id} is not finite; open the models in bfloat16 or float32.")
        gradients = tuple(verdict.gradient for verdict in verdicts)
        return dataclasses.replace(answer, gradients=gradients), findings

    def _aligned(self, spans: Sequence[Span], reading: Reading) -> Alignment:
        """Between the answer's tokens and the judge's, from their bytes in what the judge reads of the answer."""
        first, last = reading.visible
        inside = [(min(max(low, first), last) - first, min(max(high, first), last) - first) for low, high in spans]
        return self.pairing.align(inside, reading.spans, self.lm.device)

    @torch.no_grad()
    def _logits(self, rendered: Rendered) -> torch.Tensor:
        """(T, V) in the dtype of the table, of one answer."""
        batch = collate([rendered], self.lm.pad_id).to(self.lm.device)
        logits = response_logits(self.lm.model, batch.input_ids, batch.attention_mask, batch.response_mask)
        return logits.to(self.bridge.table.dtype)

    def _judged(self, p: torch.Tensor, ids: torch.Tensor, alignment: Alignment, reading: Reading) -> Judged:
        """The verdict on an answer relaxed to p (T, V), or on the generated one if the judge is to read that."""
        table = self.bridge.table
        embeddings = table[torch.tensor(reading.ids, device=table.device)]  # (L, d)
        begin, end = reading.begin, reading.begin + len(reading.spans)
        touched = embeddings[begin:end]
        if self.saturated:
            tokens = torch.tensor(reading.ids[begin:end], device=table.device)
            touched = pseudo_logits.probabilities(tokens, len(table), table.dtype) @ table
        elif self.relaxation.soft:
            touched = self.bridge.soft_embeddings(p, ids, touched, alignment)
        touched = touched.clone().requires_grad_()
        whole = torch.cat([embeddings[:begin], touched, embeddings[end:]])
        verdict = self.judge.verdict(whole.to(self.judge.lm.device, self.judge.lm.model.dtype), reading)
        value = safety(verdict, self.objective)
        (gradient,) = torch.autograd.grad(value, touched)
        return Judged(float(value.detach()), gradient.cpu(), float(verdict.outside.detach()))
