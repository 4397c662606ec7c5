"""The prompts of a study: near duplicates across sets are dropped before rows are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ballast.errors import PromptError
from ballast.prompts import Prompt, PromptSet, answered, load_prompts
from ballast.prompts.overlap import NearDuplicate, near_duplicates
from ballast.study.grid import StudyGrid

SIMILARITY = 0.8


class Resemblance(NamedTuple):
    """Two prompts of different sets that are nearly the same.

    Attributes:
        first_set: The smaller set, which keeps its row.
        second_set: The larger one.
        pair: The rows.
        dropped: Whether the row of the second set was still there, and was dropped for this.
    """

    first_set: str
    second_set: str
    pair: NearDuplicate
    dropped: bool


@dataclass(frozen=True)
class Cleaned:
    """Sets without near duplicates across them.

    Attributes:
        sets: In the order given.
        rows: How many each had.
        found: Every pair.
    """

    sets: tuple[PromptSet, ...]
    rows: tuple[int, ...]
    found: tuple[Resemblance, ...]

    def drawn(self, rows: int, seed: int) -> dict[str, PromptSet]:
        """So many rows of each set, by its name.

        Raises:
            PromptError: A set has fewer.
        """
        for prompts, before in zip(self.sets, self.rows, strict=True):
            if len(prompts) < rows:
                raise PromptError(
                    f"{rows} prompts were asked for and {prompts.name} has {len(prompts)} left, after "
                    f"{before - len(prompts)} of its {before} rows that resemble those of smaller sets; ask for fewer "
                    "(prompts) or leave the set out."
                )
        return {prompts.name: prompts.sample(rows, seed) for prompts in self.sets}

    def record(self) -> list[dict[str, Any]]:
        """The sets for `study.json`."""
        return [
            {"name": prompts.name, "hash": prompts.hash, "rows": before, "left": len(prompts)}
            for prompts, before in zip(self.sets, self.rows, strict=True)
        ]


def cleaned(sets: Sequence[PromptSet]) -> Cleaned:
    """Drop every row that nearly equals a row kept in a smaller set; of sets of one size the first counts as smaller.

    Raises:
        PromptError: Nothing is left of a set, or two sets have one name.
    """
    names = [prompts.name for prompts in sets]
    for name in names:
        if names.count(name) > 1:
            raise PromptError(f"Two prompt sets have the name {name}; rename one of the files.")
    found: list[Resemblance] = []
    kept: dict[str, PromptSet] = {}
    for prompts in sorted(sets, key=len):
        doubled: set[str] = set()
        for other in kept.values():
            pairs = near_duplicates(other, prompts, similarity=SIMILARITY)
            for pair in pairs:
                found.append(Resemblance(other.name, prompts.name, pair, pair.second not in doubled))
                doubled.add(pair.second)
        left = tuple(prompt for prompt in prompts if prompt.id not in doubled)
        if not left:
            raise PromptError(f"Every prompt of {prompts.name} is also in a smaller set; leave one of the sets out.")
        kept[prompts.name] = replace(prompts, prompts=left)
    return Cleaned(tuple(kept[name] for name in names), tuple(map(len, sets)), tuple(found))


def safety_sets(grid: StudyGrid) -> Cleaned:
    """The harmful prompts.

    Raises:
        PromptError: A set cannot be loaded, or nothing is left of it.
    """
    return cleaned([load_prompts(name) for name in grid.sets.safety])


def utility_sets(grid: StudyGrid) -> Cleaned:
    """The harmless prompts with their responses.

    Raises:
        PromptError: A set cannot be loaded, has rows without a response, or nothing is left of it.
    """
    loaded = [(load_prompts(name), name in grid.sets.text) for name in grid.sets.utility]
    return cleaned([answered(continued(prompts) if text else prompts) for prompts, text in loaded])


def continued(prompts: PromptSet) -> PromptSet:
    """Plain text as prompts and responses: of each row the first half of the words, and the rest.

    Raises:
        PromptError: A row has fewer than two words.
    """

    def divided(prompt: Prompt) -> Prompt:
        words = list(re.finditer(r"\S+", prompt.prompt))
        if len(words) < 2:
            raise PromptError(
                f"{prompt.id} of {prompts.name} has less than two words and no second half; drop the row."
            )
        last, first = words[len(words) // 2 - 1], words[len(words) // 2]
        halves = {"prompt": prompt.prompt[: last.end()], "response": prompt.prompt[first.start() :]}
        return prompt.model_copy(update=halves)

    return replace(prompts, prompts=tuple(map(divided, prompts)))
