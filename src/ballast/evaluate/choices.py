r"""The answers a multiple-choice question allows: as a field of its own, or written into the question.

Two ways of writing them into the question are known: a closing `Answer format: answer1/answer2/...`, and closing lines
`A. ...`, `B. ...` with one of the letters as the response. There the labels are the choices, not the texts behind them.
"""

from __future__ import annotations

import re
from string import ascii_uppercase

from ballast.errors import PromptError
from ballast.prompts import Prompt

ANSWER_FORMAT = re.compile(r"Answer format:\s*([^\s/]+(?:/[^\s/]+)+)\s*\Z")
LETTERED_LINE = re.compile(r"^([A-Z])\.(?=\s|$)", re.MULTILINE)


def choices_of(prompt: Prompt) -> tuple[str, ...] | None:
    """The choices of a question in their order; None if it is not multiple choice."""
    return prompt.choices or _listed(prompt.prompt) or _lettered(prompt)


def answerable_choices(prompt: Prompt) -> tuple[str, ...]:
    """The choices of a question of which one is its response.

    Raises:
        PromptError: The prompt has no choices, or its response is none of them.
    """
    found = choices_of(prompt)
    if found is None:
        raise PromptError(
            f"Prompt {prompt.id!r} is not multiple choice; give it a field `choices`, or end it with "
            "`Answer format: one/two` or with lines `A. ...`, `B. ...` and a letter as its response."
        )
    if prompt.response not in found:
        raise PromptError(
            f"The response of prompt {prompt.id!r} is none of its choices {', '.join(found)}; mend that row."
        )
    return found


def _listed(text: str) -> tuple[str, ...] | None:
    form = ANSWER_FORMAT.search(text)
    return tuple(dict.fromkeys(form[1].split("/"))) if form else None


def _lettered(prompt: Prompt) -> tuple[str, ...] | None:
    if prompt.response is None or not re.fullmatch("[A-Z]", prompt.response):
        return None
    letters = "".join(LETTERED_LINE.findall(prompt.prompt))
    block = letters[letters.rfind("A") :]  # the question itself may hold such lines too
    return tuple(block) if len(block) > 1 and ascii_uppercase.startswith(block) else None
