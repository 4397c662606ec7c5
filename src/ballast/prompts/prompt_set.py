"""A prompt set: rows with an identity, in a fixed order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ballast.errors import PromptError, UsageError


class Prompt(BaseModel):
    """One request, with a reference answer if the set has one.

    Attributes:
        id: Distinct within a set.
        prompt: What the user asks.
        category: A topic or kind of harm.
        response: The reference answer, a blank one being none; for a multiple-choice question the right choice.
        source: Where the row comes from.
        split: `tune`, `select` or `test`.
        pair: The number that a harmful prompt and its harmless twin share.
        choices: The answers of a multiple-choice question, at least two and all different; `response` is one of them.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    category: str | None = None
    response: str | None = None
    source: str | None = None
    split: str | None = None
    pair: int | None = None
    choices: tuple[str, ...] | None = Field(default=None, min_length=2)

    @field_validator("response")
    @classmethod
    def _a_blank_response_is_none(cls, response: str | None) -> str | None:
        return response if response and response.strip() else None

    @field_validator("choices")
    @classmethod
    def _choices_hold_the_response(
        cls, choices: tuple[str, ...] | None, fields: ValidationInfo
    ) -> tuple[str, ...] | None:
        if choices is None:
            return None
        if not all(choice.strip() for choice in choices):
            raise ValueError("a choice is empty")
        if len({choice.strip() for choice in choices}) < len(choices):
            raise ValueError("two choices are the same")
        if "response" in fields.data and fields.data["response"] not in choices:
            raise ValueError("the response is none of the choices")
        return choices


@dataclass(frozen=True)
class PromptSet:
    """An ordered set of prompts with distinct ids.

    Attributes:
        name: How the user named it; file names of results are made from it.
        prompts: The rows.
    """

    name: str
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        """Refuse an empty set and repeated ids."""
        if not self.prompts:
            raise PromptError(f"The prompt set {self.name} is empty; give a set with at least one prompt.")
        seen: set[str] = set()
        for prompt in self.prompts:
            if prompt.id in seen:
                raise PromptError(f"The prompt set {self.name} has the id {prompt.id!r} twice; make the ids distinct.")
            seen.add(prompt.id)

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """The prompts in order."""
        return iter(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        """The prompt at a position."""
        return self.prompts[index]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over ids, prompts, responses and choices in order, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            fields = (prompt.id, prompt.prompt, prompt.response or "", *(prompt.choices or ()), "\n")
            digest.update("\0".join(fields).encode())
        return digest.hexdigest()

    @property
    def slug(self) -> str:
        """The name as one safe file name."""
        return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in self.name).strip("-.")

    def identity(self) -> dict[str, str | int]:
        """What a manifest records of the set."""
        return {"name": self.name, "hash": self.hash, "n": len(self)}

    def sample(self, limit: int, seed: int = 0) -> PromptSet:
        """At most `limit` prompts, drawn by a seeded shuffle and kept in the order of the set.

        Raises:
            UsageError: `limit` is below 1.
        """
        if limit < 1:
            raise UsageError(f"The limit of prompts is {limit}; it must be at least 1.")
        if limit >= len(self):
            return self
        kept = sorted(random.Random(seed).sample(range(len(self)), limit))  # noqa: S311  a shuffle, not a secret
        return replace(self, prompts=tuple(self.prompts[index] for index in kept))
