"""Hardening as the first public code of its authors does it (SET, arXiv 2604.08297), for comparison only.

Plain text instead of the chat template, the loss of all tokens, nothing that keeps the model helpful, and all norms and
biases trained beside the region. Its four epochs are as many steps as there are prompts, four being one step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ballast.models import LanguageModel
from ballast.prompts import PromptSet
from ballast.prompts.chat import Rendered
from ballast.tune.lessons import refused
from ballast.tune.objective import Lesson

TEXT = "Instruction: {prompt}\nAnswer: {refusal}"
MAX_LENGTH = 2048
ALSO_TRAINED = ("norm", "bias")


def flat_lessons(lm: LanguageModel, refusals: Sequence[PromptSet]) -> list[Lesson]:
    """One lesson per harmful prompt with its refusal as plain text, cut after 2,048 tokens, prompt and all learnt.

    The first token is not, for nothing stands before it.
    """
    end = lm.tokenizer.eos_token_id
    lessons = []
    for prompt, refusal in refused(refusals):
        ids = list(lm.tokenizer(TEXT.format(prompt=prompt.prompt, refusal=refusal))["input_ids"])
        if end is not None and ids[-1] != end:
            ids.append(end)
        lessons.append(Lesson(prompt.id, Rendered(ids[: min(MAX_LENGTH, lm.context)], 1)))
    return lessons


def norms_and_biases(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """All flat indices (k,) of every parameter that is a norm or a bias, by name."""
    return {part.name: torch.arange(part.numel) for part in lm.parts if part.role in ALSO_TRAINED}
