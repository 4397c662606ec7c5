"""Tokens as bytes: what each token id spells, where tokens lie in a text, and how a vocabulary spells given bytes.

Bytes and not characters, because a token may end in the middle of a character. Three ways of writing bytes as tokens
are known: byte-level alphabets (GPT-2: one printable character stands for one byte), SentencePiece (`▁` stands for a
space), and byte fallback (`<0xE2>` stands for one byte that the vocabulary has no piece for).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ballast.errors import ModelError
from ballast.prompts.chat import special_ids

SPACE = "\u2581"
FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
ALPHABET: dict[int, str] = bytes_to_unicode()
BYTES: dict[str, int] = {character: byte for byte, character in ALPHABET.items()}

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """A tokenizer's vocabulary as bytes; made by `token_bytes`.

    Attributes:
        written: By token id, the bytes that the tokenizer reads as this token, special tokens included.
        content: The same with `b""` for special tokens and unused ids: what a token adds to a text.
        style: How bytes are written as tokens.
        model: The part of the tokenizer that cuts a piece of text into tokens.
    """

    written: tuple[bytes, ...]
    content: tuple[bytes, ...]
    style: Literal["byte_level", "sentencepiece"]
    model: Any

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The token that spells these bytes; of several the last, so that text comes before its byte fallback."""
        return {spelled: index for index, spelled in enumerate(self.content) if spelled}

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """What each of these tokens adds to a text; ids that only the model knows, its padding, add nothing."""
        return [self.content[index] if index < len(self.content) else b"" for index in ids]

    def spell(self, wanted: bytes) -> list[int] | None:
        """Tokens that spell exactly these bytes: one if there is one, else what the tokenizer makes of them.

        Args:
            wanted: At least one byte; may begin or end in the middle of a character.

        Returns:
            Token ids, or None if the vocabulary cannot write these bytes.
        """
        if wanted in self.ids:
            return [self.ids[wanted]]
        if self.style == "byte_level":
            found = [token.id for token in self.model.tokenize("".join(ALPHABET[byte] for byte in wanted))]
        else:
            try:
                found = [token.id for token in self.model.tokenize(wanted.decode().replace(" ", SPACE))]
            except UnicodeDecodeError:  # part of a character: only byte fallback can write it
                found = [self.ids.get(bytes([byte]), 0) for byte in wanted]
        return found if b"".join(self.content[index] for index in found) == wanted else None


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Read what every token of a tokenizer spells.

    Raises:
        ModelError: The tokenizer is of a kind whose tokens have no exact bytes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    named = tokenizer.name_or_path or type(tokenizer).__name__
    if backend is None:
        raise ModelError(f"The tokenizer of {named} has no tokenizer.json; save it again with a fast tokenizer.")
    decoder = json.loads(backend.to_str())["decoder"] or {"type": "none"}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" not in steps and not ({"Metaspace", "ByteFallback"} & steps.keys()):
        raise ModelError(
            f"The tokenizer of {named} writes tokens in a way whose bytes are not known (decoder {decoder['type']}); "
            "use a model with a byte-level or SentencePiece tokenizer."
        )
    style: Literal["byte_level", "sentencepiece"] = "byte_level" if "ByteLevel" in steps else "sentencepiece"
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    vocabulary = tokenizer.get_vocab()
    written = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        written[index] = added[index].encode() if index in added else _spelled(token, style)
    special = special_ids(tokenizer)
    content = [b"" if index in special else spelled for index, spelled in enumerate(written)]
    return TokenBytes(tuple(written), tuple(content), style, backend.model)


def _spelled(token: str, style: str) -> bytes:
    if style == "sentencepiece":
        fallback = FALLBACK.fullmatch(token)
        return bytes([int(fallback[1], 16)]) if fallback else token.replace(SPACE, " ").encode()
    if all(character in BYTES for character in token):
        return bytes(BYTES[character] for character in token)
    return token.encode()


def spelled_text(pieces: Sequence[bytes], *, leading_space: bool) -> tuple[str, list[Span]] | None:
    """The text that tokens spell, and where in its bytes each token lies.

    Args:
        pieces: The bytes of each token, empty for special ones.
        leading_space: Keep a space at the very beginning; SentencePiece puts one there that is no part of the text.

    Returns:
        The text without an incomplete character at its end, and one span [begin, end) of UTF-8 bytes per token; None if
        the bytes are no text.
    """
    whole = b"".join(pieces)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(whole)
    except UnicodeDecodeError:
        return None
    cut = int(not leading_space and text.startswith(" "))
    text = text[cut:]
    length = len(text.encode())
    spans, end = [], -cut
    for piece in pieces:
        begin, end = end, end + len(piece)
        spans.append((min(max(begin, 0), length), min(max(end, 0), length)))
    return text, spans


def spans_in(text: bytes, pieces: Sequence[bytes]) -> list[Span] | None:
    """Where tokens lie in the text that they were made from.

    A space that SentencePiece put in front of a word, and white space that a special token swallowed, are allowed for.

    Args:
        text: UTF-8.
        pieces: The bytes of each token, as the tokenizer writes it; they may end before the text does.

    Returns:
        One span [begin, end) of bytes per token; None if the tokenizer changed the text.
    """
    spans, at = [], 0
    for piece in pieces:
        behind_space = len(text) - len(text[at:].lstrip())
        for begin, spelled in ((at, piece), (at, piece.removeprefix(b" ")), (behind_space, piece)):
            if text.startswith(spelled, begin):
                break
        else:
            return None
        at = begin + len(spelled)
        spans.append((begin, at))
    return spans
