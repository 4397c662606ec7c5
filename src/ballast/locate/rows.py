"""The rows that likelihood methods work on: prompts with responses and what each counts."""

from __future__ import annotations

from typing import Any, NamedTuple

from ballast.prompts.chat import Rendered


class WeightedRow(NamedTuple):
    """One response whose log-probability enters the loss.

    Attributes:
        id: Names the row in errors.
        rendered: Token ids and where the response begins.
        weight: Factor of the summed log-probability of the response tokens.
    """

    id: str
    rendered: Rendered
    weight: float

    @property
    def work(self) -> list[Any]:
        """See `Row`."""
        return [self.id, self.rendered.ids, self.rendered.prompt_length, self.weight]
