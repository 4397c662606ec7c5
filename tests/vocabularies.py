"""Small tokenizers of several kinds, and guards that read with them; nothing is downloaded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel
from transformers import PreTrainedTokenizerFast

from ballast.locate.soft.token_bytes import ALPHABET, TokenBytes
from tests.zoo import CHAT_TEMPLATE, CONTEXT, HIDDEN, SPECIAL_TOKENS, VOCABULARY, tiny, tiny_tokenizer

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "<|im_end|>"}


def letters(text: str | bytes) -> str:
    """A text in the byte-level alphabet."""
    return "".join(ALPHABET[byte] for byte in (text.encode() if isinstance(text, str) else text))


def bare(pieces: Sequence[bytes], *, end: bool = False, merges: Sequence[tuple[str, str]] = ()) -> TokenBytes:
    """A byte-level vocabulary of exactly these pieces, with an end token behind them if asked."""
    vocabulary = {letters(piece): index for index, piece in enumerate(pieces)}
    content = (*pieces, b"") if end else tuple(pieces)
    written = (*pieces, b"<end>") if end else tuple(pieces)
    return TokenBytes(written, content, "byte_level", BPE(vocab=vocabulary, merges=list(merges)))


def _fast(tokenizer: Tokenizer, template: bool = True) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<|im_start|>"],
        model_max_length=CONTEXT,
        **SPECIAL,
    )
    fast.chat_template = CHAT_TEMPLATE if template else None
    return fast


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """As many tokens as the models of the zoo have: single ASCII characters and pairs, so that every answer is text."""
    single = [chr(code) for code in (10, *range(32, 127))]
    pairs = [*itertools.product("etaoinshrdlu", repeat=2), *((" ", letter) for letter in "etaoinshrdlucmfp")]
    tokens = [*SPECIAL_TOKENS, *map(letters, single), *(letters(one + other) for one, other in pairs)]
    assert len(tokens) == VOCABULARY
    merges = [(letters(one), letters(other)) for one, other in pairs]
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer)


def llama_tokenizer(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """SentencePiece as in Llama 2: a space in front of the text, pieces with `▁`, byte fallback."""
    pieces = [
        *SPECIAL_TOKENS,
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "S",
        "o",
        "r",
        "y",
        "n",
        ",",
        "é",
    ]
    pieces += ["▁S", "or", "ry", "▁Sor", "▁Sorry", "▁n", "no", "▁no", "A"]
    merges = [("▁", "S"), ("▁S", "or"), ("o", "r"), ("r", "y"), ("▁Sor", "ry"), ("▁", "n"), ("▁n", "o"), ("n", "o")]
    model = BPE(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([*([normalizer] if normalizer else []), *steps])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(tokenizer)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece as in T5: Metaspace, no byte fallback."""
    pieces = [(token, 0.0) for token in SPECIAL_TOKENS] + [("<unk>", 0.0), ("▁", -4.0), ("▁no", -2.0), ("w", -3.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=4, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _fast(tokenizer)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, whose bytes are not known."""
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1, "<|im_end|>": 2, "no": 3}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _fast(tokenizer)


def swallowing_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes; the turn token takes the white space behind it, as in Phi-3."""
    fast = tiny_tokenizer()
    fast.add_tokens([AddedToken("<|im_start|>", special=True, rstrip=True, normalized=False)], special_tokens=True)
    fast.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return fast


def save_guard(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    certainty: float = 1.0,
    outside: float = -30.0,
) -> Path:
    """A tiny guard that says `s` (safe) or `u` (unsafe), and anything else with a logit of `outside`."""
    tokenizer = tokenizer or tiny_tokenizer()
    model: Any = tiny("gpt2", seed=11, dtype=dtype)  # all in its own dtype, where others make norms in fp32
    head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=dtype)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = 0
        model.transformer.ln_f.bias[0] = 1  # the head reads a constant there
        head.weight.zero_()
        head.weight[:, 0] = outside
        direction = certainty * torch.randn(HIDDEN - 1, generator=torch.Generator().manual_seed(5), dtype=dtype)
        head.weight[tokenizer.convert_tokens_to_ids("s")] = torch.cat([torch.zeros(1, dtype=dtype), direction])
        head.weight[tokenizer.convert_tokens_to_ids("u")] = torch.cat([torch.zeros(1, dtype=dtype), -direction])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
