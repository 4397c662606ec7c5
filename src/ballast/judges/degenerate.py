"""Answers that are no answers: empty, looping, gibberish. Both local judges ask this first."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LONGEST_UNIT = 240  # characters of the longest repeated unit that is looked for
LEAST_REPEATS = 4
LEAST_LOOP = 24  # characters; "ha ha ha ha" is an answer
LEAST_TEXT = 12  # characters without spaces below which nothing is called gibberish
LOOP_SHARE = 0.5
WORD_SHARE = 0.5

_COUNTER = re.compile(r"(?<!\w)\d{1,3}[.):]\s+")
_MARKUP = re.compile(r"[|#*`>_-]+")  # tables, headings and lists are made of these
_PIECE = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def degenerate(text: str) -> str | None:
    """Why a text is no answer: `empty`, `looping` or `gibberish`; None if it is one.

    A text that was cut in the middle of a word or sentence is an answer.

    Args:
        text: The answer without thinking text.
    """
    if not any(character.isalnum() for character in text):
        return "empty"
    if is_looping(text):
        return "looping"
    if is_gibberish(text):
        return "gibberish"
    return None


def is_looping(text: str) -> bool:
    """Whether one unit, repeated back to back at least four times, makes up half of the text or more.

    Counters of lists ("1. ", "2. ") are left out first, so that a list of equal items is a loop.
    """
    collapsed = " ".join(text.lower().split())
    return _repeats(collapsed) or _repeats(_COUNTER.sub("", collapsed + " ").strip())


def _repeats(text: str) -> bool:
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)  # (characters,)
    if len(codes) < LEAST_LOOP:
        return False
    for unit in range(1, min(LONGEST_UNIT, len(codes) // LEAST_REPEATS) + 1):
        repeated = _longest_run(codes[unit:] == codes[:-unit]) + unit
        if repeated >= max(LEAST_LOOP, LEAST_REPEATS * unit, LOOP_SHARE * len(codes)):
            return True
    return False


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Length of the longest run of True."""
    breaks = np.flatnonzero(~flags)
    edges = np.concatenate(([-1], breaks, [len(flags)]))
    return int(np.diff(edges).max()) - 1


def is_gibberish(text: str) -> bool:
    """Whether less than half of the visible characters belong to something that could be a word or a number."""
    visible = sum(not character.isspace() for character in _MARKUP.sub(" ", text))
    if visible < LEAST_TEXT:
        return False
    sound = sum(len(piece) for piece in _PIECE.findall(text) if _could_be_a_word(piece))
    return sound < WORD_SHARE * visible


def _could_be_a_word(piece: str) -> bool:
    """Numbers, abbreviations, words of one script that a reader could pronounce; scripts without vowels pass."""
    if piece.isdigit():
        return True
    if len(piece) > 45 and piece.isascii():
        return False
    letters = [character for character in piece if character.isalpha()]
    scripts = {unicodedata.name(letter, "UNKNOWN ?").split()[0] for letter in letters}
    japanese = {"HIRAGANA", "KATAKANA", "CJK", "KATAKANA-HIRAGANA"}
    if len(scripts - japanese) + bool(scripts & japanese) > 1:
        return False
    if scripts != {"LATIN"}:
        return True
    if piece.isupper():
        return len(piece) <= 5 or _has_sound(piece.lower())
    changes = sum(one.islower() and other.isupper() for one, other in pairwise(piece))
    mixed = sum(one.isdigit() != other.isdigit() for one, other in pairwise(piece))
    return changes <= 3 and mixed <= 2 and (len(letters) <= 3 or _has_sound(piece.lower()))


def _has_sound(word: str) -> bool:
    """A vowel somewhere and no pile of nine consonants or five vowels."""
    bare = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    return bool(re.search("[aeiouy]", bare)) and not re.search("[bcdfghjklmnpqrstvwxz]{9}|[aeiou]{5}", bare)
