"""Answers to a whole prompt set, saved as they come and never generated twice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ballast.models import LanguageModel
from ballast.models.generation import answer_batch, fitting_batch_size
from ballast.progress import track
from ballast.prompts import PromptSet
from ballast.prompts.chat import Rendered, check_length, render
from ballast.runs import JsonLines


class Completion(NamedTuple):
    """The answer to one prompt.

    Attributes:
        id: The prompt's id.
        prompt: The request.
        answer: The answer's text, without special tokens.
        tokens: Length of the answer in tokens.
        finished: Whether the model ended the answer itself, rather than the limit of tokens.
    """

    id: str
    prompt: str
    answer: str
    tokens: int
    finished: bool


def generate(
    lm: LanguageModel,
    prompts: PromptSet,
    *,
    max_new_tokens: int = 48,
    batch_size: int | None = None,
    system: str | None = None,
    out: Path | None = None,
) -> list[Completion]:
    """Greedy answers to a prompt set, in its order.

    The batches depend on the prompts alone, so that a run that was interrupted gives the same answers.

    Args:
        lm: The model.
        prompts: The requests.
        max_new_tokens: Tokens after which an answer is cut.
        batch_size: Prompts per batch; found from the machine's memory if None, and halved when memory runs out.
        system: System message; None leaves that to the template.
        out: JSON lines file; rows that it holds already are not generated again.

    Raises:
        PromptError: A prompt with room for its answer is longer than the context; its id is named.
        UsageError: A single prompt does not fit into memory.
        RunError: `out` cannot be read or written.
    """
    rendered = {prompt.id: render(lm.tokenizer, prompt.prompt, system=system) for prompt in prompts}
    for identity, row in rendered.items():
        check_length(row, lm.context - max_new_tokens, identity)
    stored = JsonLines(out) if out else None
    found = {row["id"]: Completion(**row) for row in stored.rows} if stored else {}
    longest = max(len(row.ids) for row in rendered.values())
    size = batch_size or fitting_batch_size(lm, longest + max_new_tokens)
    texts = {prompt.id: prompt.prompt for prompt in prompts}
    batches = _batches(rendered, size)
    waiting = [batch for batch in batches if any(identity not in found for identity in batch)]
    for batch in track(waiting, f"Answers to {prompts.name}", len(batches) - len(waiting)):
        answers = answer_batch(lm, [rendered[identity].ids for identity in batch], max_new_tokens)
        rows = [
            Completion(
                identity,
                texts[identity],
                str(lm.tokenizer.decode(answer.ids, skip_special_tokens=True)).strip(),
                len(answer.ids),
                answer.finished,
            )
            for identity, answer in zip(batch, answers, strict=True)
        ]
        fresh = [row for row in rows if row.id not in found]
        found.update((row.id, row) for row in fresh)
        if stored:
            stored.append([row._asdict() for row in fresh])
    return [found[prompt.id] for prompt in prompts]


def _batches(rendered: dict[str, Rendered], size: int) -> list[list[str]]:
    """Ids in batches of similar length, the longest first: too little memory shows at once."""
    ordered = sorted(rendered, key=lambda identity: (-len(rendered[identity].ids), identity))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
