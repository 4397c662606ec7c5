"""Judges that can be differentiated: from the embeddings of an answer to the verdict.

A soft judge first reads a text as it would at run time, which gives its tokens; the embeddings of the tokens that touch
the answer may then be mixtures. `EmbeddedSoftJudge` is the default judge of Ballast, `guard.py` any guard model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch.nn import functional

from ballast.errors import JudgeError
from ballast.judges import EmbeddedJudge, get_judge
from ballast.judges.embedded import Exchange, seen, without_model
from ballast.judges.text import visible_span
from ballast.locate.soft.token_bytes import Span, TokenBytes, spans_in, token_bytes
from ballast.models import LanguageModel
from ballast.models.fingerprint import tensor_fingerprint

Objective = Literal["log_odds", "log_probability", "probability", "safe_logit"]


class Reading(NamedTuple):
    """What a judge reads of one exchange.

    Attributes:
        ids: Token ids of everything it reads.
        begin: Where in `ids` the tokens begin that touch the answer; there is one for each span.
        spans: Bytes that each of them covers, counted from the beginning of `visible`.
        visible: The part of the answer that the judge reads, in bytes of the answer.
    """

    ids: list[int]
    begin: int
    spans: list[Span]
    visible: Span


class VerdictLogits(NamedTuple):
    """A judge's verdict, each a scalar tensor.

    Attributes:
        safe: Logit of safe: the answer refuses, or the guard lets it pass.
        unsafe: Logit of unsafe.
        outside: Probability of everything else that the judge could say.
    """

    safe: torch.Tensor
    unsafe: torch.Tensor
    outside: torch.Tensor


class SoftJudge(Protocol):
    """A judge whose verdict is differentiable in the embeddings that it reads."""

    @property
    def lm(self) -> LanguageModel:
        """The judge's model; its weights stay as they are."""
        ...

    @property
    def vocabulary(self) -> TokenBytes:
        """Its vocabulary as bytes."""
        ...

    def read(self, prompt: str, answer: str) -> Reading | str:
        """What it reads of an exchange; a text says why it gives no verdict on this one."""
        ...

    def verdict(self, embeddings: torch.Tensor, reading: Reading) -> VerdictLogits:
        """Its verdict on embeddings (tokens, d) in the places of `reading.ids`."""
        ...

    def identity(self) -> dict[str, Any]:
        """What the record says of it."""
        ...


def safety(verdict: VerdictLogits, objective: Objective) -> torch.Tensor:
    """F, a scalar that is larger for a safer verdict; probabilities are normalised over safe and unsafe."""
    odds = verdict.safe - verdict.unsafe
    match objective:
        case "log_odds":
            return odds
        case "log_probability":
            return functional.logsigmoid(odds)
        case "probability":
            return odds.sigmoid()
        case "safe_logit":
            return verdict.safe


def embedding_table(lm: LanguageModel) -> torch.Tensor:
    """What the model makes of every token id before its first block, (V, d), fp32 or wider.

    Asked of the embedding module, since some models scale what they look up.
    """
    module: Any = lm.model.get_input_embeddings()
    with torch.no_grad():
        table: torch.Tensor = module(torch.arange(module.weight.shape[0], device=lm.device))
    return table.to(torch.promote_types(table.dtype, torch.float32))


@dataclass(frozen=True)
class EmbeddedSoftJudge:
    """The embedded judge: a linear head on frozen states of SmolLM2; safe means that the answer refuses.

    Attributes:
        judge: The judge of `ballast.judges`, with its head and its reader.
        vocabulary: Of its reader.
    """

    judge: EmbeddedJudge
    vocabulary: TokenBytes

    @classmethod
    def open(cls) -> EmbeddedSoftJudge:
        """Load the embedded judge.

        Raises:
            ModelError: The embedded model is not installed.
            JudgeError: The head's file is missing or damaged.
        """
        judge = get_judge("embedded")
        if not isinstance(judge, EmbeddedJudge):
            raise JudgeError(
                "The judge embedded was replaced by another one, which has no gradient; register it again."
            )
        return cls(judge, token_bytes(judge.reader.lm.tokenizer))

    @property
    def lm(self) -> LanguageModel:
        """The reader's model, cut after the layer that the head reads."""
        return self.judge.reader.lm

    def read(self, prompt: str, answer: str) -> Reading | str:
        """The first tokens of the answer, as `judge` reads them; texts that it judges without reading have a reason."""
        first, last, still_thinking = visible_span(answer)
        text = answer[first:last]
        unread = without_model(text, still_thinking)
        if unread is not None:
            return f"{unread.raw} answer"
        exchange = self.judge.reader.encode(prompt, text)
        written = [self.vocabulary.written[token] for token in exchange.ids[exchange.begin : exchange.end]]
        spans = spans_in(text.encode(), written)
        if spans is None:
            return "answer changed by the judge's tokenizer"
        offset = len(answer[:first].encode())
        return Reading(exchange.ids, exchange.begin, spans, (offset, offset + spans[-1][1]))

    def verdict(self, embeddings: torch.Tensor, reading: Reading) -> VerdictLogits:
        """The head's logit for a refusal against 0."""
        exchange = Exchange(reading.ids, reading.begin, reading.begin + len(reading.spans))
        states = self.judge.reader.hidden(inputs_embeds=embeddings.unsqueeze(0))[0]
        logit = seen(states, exchange) @ self.judge.weight.to(states.device) + self.judge.bias.to(states.device)
        nothing = torch.zeros_like(logit)
        return VerdictLogits(logit, nothing, nothing)

    def identity(self) -> dict[str, Any]:
        """The judge's name, its head, and the layers that it reads with."""
        return {**self.lm.identity(), "name": "embedded", "head": tensor_fingerprint(self.judge.weight)}
