"""Sets that show whether safety is skin-deep: they are for measuring, on a model that is then thrown away."""

from __future__ import annotations

from ballast.errors import PromptError
from ballast.prompts.load import ATTACKS, load_prompts
from ballast.prompts.prompt_set import PromptSet


def require_no_attack(rows: PromptSet) -> None:
    """Refuse to keep a model that was trained on rows of a built-in attack.

    Raises:
        PromptError: A row has the prompt and the response of one.
    """
    known = {(row.prompt, row.response): kind for kind in ATTACKS for row in load_prompts(f"builtin/{kind}")}
    for row in rows:
        if kind := known.get((row.prompt, row.response)):
            raise PromptError(
                f"{row.id} of {rows.name} is of builtin/{kind}, which makes a model less safe; measure with it "
                "(`ballast attack`), which keeps no model."
            )
