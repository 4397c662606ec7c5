"""A guard model as a soft judge: a causal language model that reads an exchange and says whether it is safe."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError

from ballast.errors import JudgeError
from ballast.locate.soft.soft_judge import Reading, VerdictLogits
from ballast.locate.soft.token_bytes import TokenBytes, spans_in, token_bytes
from ballast.models import LanguageModel, open_model

PLACEHOLDER = "answer-0c9e5d"  # stands for the answer while the template is looked at


@dataclass(frozen=True)
class GuardTemplate:
    """How a guard wants to be asked.

    Attributes:
        lm: The guard's model; its tokenizer has a chat template.
        verdict_prefix: What the guard always writes before the verdict.
        response_in_user_slot: Show it the answer alone, as if a user had written it.
    """

    lm: LanguageModel
    verdict_prefix: str
    response_in_user_slot: bool

    def render(self, prompt: str, answer: str) -> str:
        """The text of an exchange, up to the verdict.

        Raises:
            JudgeError: The template rejects exchanges.
        """
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        if self.response_in_user_slot:
            messages = [{"role": "user", "content": answer}]
        try:
            text = self.lm.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except TemplateError as error:
            raise JudgeError(
                f"The chat template of {self.lm.source} rejects an exchange ({error}); use a guard."
            ) from error
        return f"{text}{self.verdict_prefix}"

    def frame(self, prompt: str) -> tuple[str, str]:
        """What is written before and behind the answer.

        Raises:
            JudgeError: The template does not show the answer exactly once.
        """
        pieces = self.render(prompt, PLACEHOLDER).split(PLACEHOLDER)
        if len(pieces) != 2:
            raise JudgeError(
                f"The chat template of {self.lm.source} shows an answer {len(pieces) - 1} times instead of once; "
                "use a guard that reads answers."
            )
        return pieces[0], pieces[1]

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered text."""
        return list(self.lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    def first_token(self, verdict: str, vocabulary: TokenBytes) -> int:
        """The token that begins a verdict.

        Raises:
            JudgeError: There is none.
        """
        asked = self.render("Hello", "Hello")
        before, whole = self.ids(asked), self.ids(asked + verdict)
        first = whole[len(before)] if len(whole) > len(before) and whole[: len(before)] == before else None
        if first is None or not vocabulary.content[first]:
            raise JudgeError(
                f"{self.lm.source} is a guard without verdict tokens: behind its template {verdict!r} begins with no "
                "token of its own; give the word that it answers with, or another verdict_prefix."
            )
        return first


@dataclass(frozen=True)
class Guard:
    """A guard; its verdict is the first token that it would say.

    Attributes:
        template: How it is asked.
        vocabulary: Its vocabulary as bytes.
        safe: Token id that begins the verdict safe.
        unsafe: Token id that begins the verdict unsafe.
    """

    template: GuardTemplate
    vocabulary: TokenBytes
    safe: int
    unsafe: int

    @classmethod
    def open(
        cls,
        source: str,
        device: torch.device,
        *,
        safe: str,
        unsafe: str,
        verdict_prefix: str = "",
        response_in_user_slot: bool = False,
    ) -> Guard:
        """Open a guard and find the tokens of its verdicts.

        Args:
            source: Folder of a checkpoint, hub id, or `smollm2`.
            device: Where to put it.
            safe: How it writes the verdict safe.
            unsafe: How it writes the verdict unsafe.
            verdict_prefix: What it always writes before the verdict, such as line breaks.
            response_in_user_slot: Show it the answer alone, in the place of the user.

        Raises:
            ModelError: The model cannot be opened, or its tokenizer is of an unknown kind.
            JudgeError: It has no usable chat template, or its verdicts do not begin with different tokens.
        """
        lm = open_model(source, device=device)
        if not lm.tokenizer.chat_template:
            raise JudgeError(f"{source} has no chat template, so it is unknown how it reads an exchange; use a guard.")
        template, vocabulary = GuardTemplate(lm, verdict_prefix, response_in_user_slot), token_bytes(lm.tokenizer)
        template.frame("Hello")  # an answer must be shown
        tokens = [template.first_token(verdict, vocabulary) for verdict in (safe, unsafe)]
        if tokens[0] == tokens[1]:
            raise JudgeError(
                f"{source} is a guard without verdict tokens: {safe!r} and {unsafe!r} begin with the same token; "
                "give the words that it answers with."
            )
        return cls(template, vocabulary, *tokens)

    @property
    def lm(self) -> LanguageModel:
        """The guard's model."""
        return self.template.lm

    def read(self, prompt: str, answer: str) -> Reading | str:
        """The exchange in the guard's template, up to the verdict."""
        before, behind = self.template.frame(prompt)
        text = self.template.render(prompt, answer)
        seen = text[len(before) : len(text) - len(behind)]
        if not seen.strip():
            return "empty answer"
        if before + seen + behind != text or answer.count(seen) != 1:
            return "answer changed by the judge's template"
        ids = self.template.ids(text)
        spans = spans_in(text.encode(), [self.vocabulary.written[token] for token in ids])
        if spans is None:
            return "answer changed by the judge's tokenizer"
        begin = len(before.encode())
        end = begin + len(seen.encode())
        touching = [place for place, span in enumerate(spans) if span[0] < end and span[1] > begin]
        inside = [(low - begin, high - begin) for low, high in spans[touching[0] : touching[-1] + 1]]
        offset = len(answer[: answer.index(seen)].encode())
        return Reading(ids, touching[0], inside, (offset, offset + end - begin))

    def verdict(self, embeddings: torch.Tensor, reading: Reading) -> VerdictLogits:
        """Logits of the two verdicts at the first token that the guard would say."""
        del reading  # the verdict comes behind everything that is read
        logits = self.lm.model(inputs_embeds=embeddings.unsqueeze(0), logits_to_keep=1, use_cache=False).logits[0, -1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (V,)
        verdicts = logits[[self.safe, self.unsafe]]
        outside = -torch.expm1(verdicts.logsumexp(0) - logits.logsumexp(0))
        return VerdictLogits(verdicts[0], verdicts[1], outside)

    def identity(self) -> dict[str, Any]:
        """The guard's model, a hash of its template and its verdict tokens."""
        template = hashlib.sha256(str(self.lm.tokenizer.chat_template).encode()).hexdigest()
        return {**self.lm.identity(), "template": template, "verdict_ids": [self.safe, self.unsafe]}
