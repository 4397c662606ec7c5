"""Tokens as bytes: byte-level, SentencePiece and byte-fallback vocabularies, spans, and spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase

from ballast.errors import ModelError
from ballast.locate.soft.token_bytes import TokenBytes, spans_in, spelled_text, token_bytes
from tests.vocabularies import (
    bare,
    llama_tokenizer,
    pair_tokenizer,
    swallowing_tokenizer,
    unigram_tokenizer,
    word_tokenizer,
)
from tests.zoo import EOS, PAD, SPECIAL_TOKENS, tiny_tokenizer

BYTE_LEVEL = token_bytes(tiny_tokenizer())
LLAMA = token_bytes(llama_tokenizer())


def ids_of(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> list[int]:
    return [tokenizer.get_vocab()[token] for token in tokens]


class TestVocabulary:
    def test_byte_level(self) -> None:
        assert BYTE_LEVEL.style == "byte_level"
        assert BYTE_LEVEL.content[:4] == (b"", b"", b"", b"")
        assert BYTE_LEVEL.written[:4] == tuple(token.encode() for token in SPECIAL_TOKENS)
        assert sorted(BYTE_LEVEL.content[4:]) == [bytes([byte]) for byte in range(256)]
        tokenizer = tiny_tokenizer()
        for text in ("é", " \n", "naïve — 東"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert b"".join(BYTE_LEVEL.content[token] for token in ids) == text.encode()

    def test_sentencepiece_with_byte_fallback(self) -> None:
        tokenizer = llama_tokenizer()
        assert LLAMA.style == "sentencepiece"
        assert LLAMA.content[ids_of(tokenizer, "▁Sor")[0]] == b" Sor"
        assert LLAMA.content[ids_of(tokenizer, "<0xE2>")[0]] == b"\xe2"
        assert LLAMA.content[ids_of(tokenizer, "é")[0]] == "é".encode()
        assert LLAMA.content[PAD] == b""

    def test_rows_of_padding_add_nothing(self) -> None:
        assert BYTE_LEVEL.pieces([PAD, BYTE_LEVEL.ids[b"a"], 10_000]) == [b"", b"a", b""]

    def test_tokens_that_were_added(self) -> None:
        found, tokenizer = token_bytes(swallowing_tokenizer()), swallowing_tokenizer()
        assert found.content[ids_of(tokenizer, "<think>")[0]] == b"<think>"  # text, not special
        assert found.content[ids_of(tokenizer, "<|im_start|>")[0]] == b""

    def test_unknown_kinds_are_an_error(self) -> None:
        with pytest.raises(ModelError, match=r"bytes are not known \(decoder none\); use a model with a byte-level"):
            token_bytes(word_tokenizer())


class TestSpelling:
    @pytest.mark.parametrize(
        "vocabulary", [BYTE_LEVEL, LLAMA, token_bytes(pair_tokenizer())], ids=["bytes", "llama", "pairs"]
    )
    def test_what_is_a_token_is_spelled_by_one(self, vocabulary: TokenBytes) -> None:
        for spelled in vocabulary.content:
            if spelled:
                found = vocabulary.spell(spelled)
                assert found is not None
                assert [vocabulary.content[token] for token in found] == [spelled]

    def test_by_merges(self) -> None:
        vocabulary = bare([b"a", b"b", b"c", b"ab"], merges=[("a", "b")])
        assert vocabulary.spell(b"cab") == [2, 3]
        assert vocabulary.spell(b"ax") is None

    def test_text_goes_before_its_byte_fallback(self) -> None:
        """Llama has both `<0x41>` and `A`; a text is never written with the former."""
        assert LLAMA.spell(b"A") == ids_of(llama_tokenizer(), "A")

    def test_without_the_space_that_sentencepiece_puts_in_front(self) -> None:
        tokenizer = llama_tokenizer()
        assert LLAMA.spell(b"or,") == ids_of(tokenizer, "or", ",")
        assert LLAMA.spell(b" no,") == ids_of(tokenizer, "▁no", ",")

    def test_parts_of_characters(self) -> None:
        tokenizer = llama_tokenizer()
        assert LLAMA.spell("東".encode()[:2]) == ids_of(tokenizer, "<0xE6>", "<0x9D>")
        assert LLAMA.spell("東".encode()) == ids_of(tokenizer, "<0xE6>", "<0x9D>", "<0xB1>")
        assert BYTE_LEVEL.spell(b"\xe6\x9d") == [BYTE_LEVEL.ids[b"\xe6"], BYTE_LEVEL.ids[b"\x9d"]]

    def test_what_cannot_be_written(self) -> None:
        vocabulary = token_bytes(unigram_tokenizer())
        assert vocabulary.spell(b" now") == ids_of(unigram_tokenizer(), "▁no", "w")
        assert vocabulary.spell(b"x") is None
        assert vocabulary.spell(b"\xe6") is None


class TestSpelledText:
    def test_characters_split_over_tokens(self) -> None:
        found = spelled_text([b"a\xc3", b"\xa9", b"", b"b"], leading_space=True)
        assert found == ("aéb", [(0, 2), (2, 3), (3, 3), (3, 4)])

    def test_an_incomplete_character_at_the_end_is_cut(self) -> None:
        assert spelled_text([b"no", b"\xe6", b"\x9d"], leading_space=True) == ("no", [(0, 2), (2, 2), (2, 2)])

    def test_what_is_no_text(self) -> None:
        assert spelled_text([b"a", b"\xff", b"b"], leading_space=True) is None

    def test_the_space_of_sentencepiece(self) -> None:
        pieces = [b" Sor", b"ry"]
        assert spelled_text(pieces, leading_space=True) == (" Sorry", [(0, 4), (4, 6)])
        assert spelled_text(pieces, leading_space=False) == ("Sorry", [(0, 3), (3, 5)])
        assert spelled_text([b" ", b"or"], leading_space=False) == ("or", [(0, 0), (0, 2)])

    @pytest.mark.parametrize(
        "tokenizer", [tiny_tokenizer(), llama_tokenizer(), pair_tokenizer()], ids=["bytes", "llama", "pairs"]
    )
    def test_is_what_the_tokenizer_decodes(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ids = [*tokenizer("Sorry, no or no", add_special_tokens=False)["input_ids"], EOS]
        content = token_bytes(tokenizer).content
        decoded = str(tokenizer.decode(ids, skip_special_tokens=True))
        found = spelled_text([content[token] for token in ids], leading_space=decoded.startswith(" "))
        assert found is not None
        assert found[0] == decoded


class TestSpansIn:
    @given(st.text(max_size=20))
    def test_tile_the_text(self, text: str) -> None:
        tokenizer = tiny_tokenizer()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spans = spans_in(text.encode(), [BYTE_LEVEL.written[token] for token in ids])
        assert spans == [(place, place + 1) for place in range(len(text.encode()))]

    def test_special_tokens_are_part_of_the_text(self) -> None:
        text = "<|im_start|>é"
        ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
        assert spans_in(text.encode(), [BYTE_LEVEL.written[token] for token in ids]) == [(0, 12), (12, 13), (13, 14)]

    def test_the_space_of_sentencepiece(self) -> None:
        tokenizer = llama_tokenizer()
        ids = tokenizer("Sorry, 東", add_special_tokens=False)["input_ids"]
        spans = spans_in("Sorry, 東".encode(), [LLAMA.written[token] for token in ids])
        assert spans == [(0, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 10)]

    def test_white_space_that_a_special_token_takes(self) -> None:
        tokenizer = swallowing_tokenizer()
        vocabulary = token_bytes(tokenizer)
        ids = tokenizer("<|im_start|>\n no", add_special_tokens=False)["input_ids"]
        assert spans_in(b"<|im_start|>\n no", [vocabulary.written[t] for t in ids]) == [(0, 12), (14, 15), (15, 16)]

    def test_a_changed_text_has_none(self) -> None:
        tokenizer = llama_tokenizer(normalizers.Lowercase())
        ids = tokenizer("NO", add_special_tokens=False)["input_ids"]
        assert spans_in(b"NO", [LLAMA.written[token] for token in ids]) is None

    def test_tokens_may_end_before_the_text(self) -> None:
        assert spans_in(b"abc", [b"a"]) == [(0, 1)]
