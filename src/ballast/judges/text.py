"""The part of an answer that a judge looks at: thinking removed, typography made plain."""

from __future__ import annotations

import re

# Opening and closing marks of text that a model writes for itself before it answers.
_TAGS = "(?:think|thinking|thought|reasoning|reflection|scratchpad|seed:think)"
_OPEN = re.compile(rf"<{_TAGS}>|\[think\]|◁think▷|<\|channel\|>analysis<\|message\|>", re.IGNORECASE)
_CLOSE = re.compile(rf"</{_TAGS}>|\[/think\]|◁/think▷|<\|channel\|>final<\|message\|>", re.IGNORECASE)

_STRAIGHT = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00b4": "'", "`": "'"} | dict.fromkeys("“”„«»", '"')
)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"(?m)^\s*(?:>\s*|#{1,6}\s+|[-*+•]\s+)+|\*\*|__|~~|(?<!\w)[*_](?=\w)|(?<=[\w.!?,:])[*_](?!\w)")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")


def strip_thinking(answer: str) -> tuple[str, bool]:
    """Remove what the model thought before it answered.

    A close without an open counts too, because some chat templates put the opening mark into the prompt.

    Args:
        answer: The generated text.

    Returns:
        The text after the last closing mark, and whether the answer ended while the model was still thinking; in that
        case the text is what stood before the thought.
    """
    closed = list(_CLOSE.finditer(answer))
    visible = answer[closed[-1].end() :] if closed else answer
    opened = _OPEN.search(visible)
    if opened is None:
        return visible.strip(), False
    return visible[: opened.start()].strip(), True


def plain(text: str) -> str:
    """Straight quotes, no markdown marks, single spaces; line breaks are kept."""
    text = _LINK.sub(r"\1", text.translate(_STRAIGHT))
    text = _MARKS.sub("", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def beginning(text: str, sentences: int, characters: int) -> str:
    """The first sentences of a text, at most `characters` long."""
    parts = [part for part in _SENTENCE_END.split(text[: characters + 1]) if part.strip()]
    return " ".join(parts[:sentences])[:characters]
