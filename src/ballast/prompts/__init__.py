"""Prompt sets, chat formatting and token masks."""

from ballast.prompts.load import available_sets, load_prompts
from ballast.prompts.prompt_set import Prompt, PromptSet

__all__ = ["Prompt", "PromptSet", "available_sets", "load_prompts"]
