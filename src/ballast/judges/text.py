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


def visible_span(answer: str) -> tuple[int, int, bool]:
    """Where an answer stands in a generated text: behind what the model thought before it answered.

    A close without an open counts too, because some chat templates put the opening mark into the prompt.

    Args:
        answer: The generated text.

    Returns:
        Begin and end, in characters, of the text after the last closing mark, without white space around it; and
        whether the text ended while the model was still thinking; in that case they are those of what stood before the
        thought.
    """
    closed = list(_CLOSE.finditer(answer))
    begin = closed[-1].end() if closed else 0
    opened = _OPEN.search(answer, begin)
    visible = answer[begin : opened.start() if opened else len(answer)]
    begin += len(visible) - len(visible.lstrip())
    return begin, begin + len(visible.strip()), opened is not None


def strip_thinking(answer: str) -> tuple[str, bool]:
    """Remove what the model thought before it answered; the text and whether it was still thinking (`visible_span`)."""
    begin, end, still_thinking = visible_span(answer)
    return answer[begin:end], still_thinking


def plain(text: str) -> str:
    """Straight quotes, no markdown marks, single spaces; line breaks are kept."""
    text = _LINK.sub(r"\1", text.translate(_STRAIGHT))
    text = _MARKS.sub("", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def beginning(text: str, sentences: int, characters: int) -> str:
    """The first sentences of a text, at most `characters` long."""
    parts = [part for part in _SENTENCE_END.split(text[: characters + 1]) if part.strip()]
    return " ".join(parts[:sentences])[:characters]
