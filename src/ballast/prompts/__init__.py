"""Prompt sets, chat formatting and token masks."""

from ballast.prompts.load import PromptSets, answered, as_prompt_set, as_prompt_sets, available_sets, load_prompts
from ballast.prompts.prompt_set import Prompt, PromptSet

__all__ = [
    "Prompt",
    "PromptSet",
    "PromptSets",
    "answered",
    "as_prompt_set",
    "as_prompt_sets",
    "available_sets",
    "load_prompts",
]
