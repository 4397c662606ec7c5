"""The rows that fine-tuning learns: prompts with responses in the model's own template, with refusals mixed in."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from ballast.errors import PromptError
from ballast.models import LanguageModel
from ballast.models.fingerprint import seed_of
from ballast.prompts import PromptSet
from ballast.prompts.batches import collate
from ballast.prompts.chat import Rendered, render

IGNORED = -100  # label of tokens that are not learnt


def tokenized(lm: LanguageModel, rows: PromptSet, max_length: int) -> list[Rendered]:
    """Rows in the model's chat template, cut to a length, or to the model's context if that is shorter.

    Raises:
        PromptError: A row has no response, or none of a response is left after the cut.
    """
    found, longest = [], min(max_length, lm.context)
    for row in rows:
        if not row.response:
            raise PromptError(f"{rows.name}: {row.id} has no response; fine-tuning learns responses, so give each one.")
        ids, start = render(lm.tokenizer, row.prompt, row.response)
        if start >= longest:
            raise PromptError(
                f"{rows.name}: the prompt {row.id} takes {start} of at most {longest} tokens, which leaves none to "
                "its response; allow more or leave it out."
            )
        found.append(Rendered(ids[:longest], start))
    return found


def collated(batch: Sequence[Rendered], pad_id: int) -> dict[str, torch.Tensor]:
    """A padded batch whose labels are the tokens of the responses."""
    tokens = collate(batch, pad_id)
    return {
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
        "labels": tokens.input_ids.masked_fill(~tokens.response_mask, IGNORED),
    }


def with_refusals(rows: Sequence[Rendered], refusals: Sequence[Rendered], share: float, seed: int) -> list[Rendered]:
    """Rows with so many refusals behind them that these make up a share of all, at least one (arXiv 2309.07875).

    Args:
        rows: What is learnt.
        refusals: What is drawn from, in passes over all, each in an order of its own.
        share: Of the refusals in the result, in (0, 1); nothing is mixed in if it is 0.
        seed: Of the draw.
    """
    count = math.ceil(share * len(rows) / (1 - share) - 1e-9)  # what rounding adds asks for no further row
    drawn: list[Rendered] = []
    while len(drawn) < count:
        order = random.Random(seed_of(seed, "mix", str(len(drawn))))  # noqa: S311  a shuffle, not a secret
        drawn += order.sample(list(refusals), min(len(refusals), count - len(drawn)))
    return [*rows, *drawn]
