"""Peculiarities of the authors' code (arXiv 2604.08297), each to be switched on alone.

They differ from `alignment.py` in how the judge's tokens and the target's meet. There the bytes decide; in that code
the index does, after a token too many in front of the judge's and one too few behind the target's, and tokens are
translated the other way round. They are here to compare with that code, not because they were right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from transformers import PreTrainedTokenizerBase

from ballast.errors import JudgeError
from ballast.locate.soft.alignment import Alignment, Interval, VocabularyMap, align
from ballast.locate.soft.soft_judge import Reading
from ballast.locate.soft.token_bytes import Span
from ballast.models import LanguageModel

WHOLE: Interval = (Fraction(0), Fraction(1))
BLANKS = str.maketrans({"\u0120": " ", "_": " "})  # the byte-level space, and an ASCII underscore where ▁ was meant


@dataclass(frozen=True)
class Pairing:
    """How positions of the answer and of the judge meet; all off is `align`.

    Attributes:
        position_truncation: The n-th position meets the judge's n-th token, up to the shorter of the two.
        bos_shift: The judge reads its begin-of-text token in front of the answer, so that every row meets the position
            behind its own, and the first position meets that token.
        drop_last_token: The last generated token is not scored.
    """

    position_truncation: bool = False
    bos_shift: bool = False
    drop_last_token: bool = False

    def reading(self, reading: Reading, lm: LanguageModel) -> Reading:
        """What the judge reads, with its begin-of-text token in front of the answer if that is on.

        Raises:
            JudgeError: It has none.
        """
        if not self.bos_shift:
            return reading
        begin = lm.tokenizer.bos_token_id
        if begin is None:
            raise JudgeError(f"{lm.source} has no begin-of-text token; switch bos_shift off, or use another guard.")
        ids = [*reading.ids[: reading.begin], int(begin), *reading.ids[reading.begin :]]
        return reading._replace(ids=ids, spans=[(0, 0), *reading.spans])

    def align(self, target: Sequence[Span], judge: Sequence[Span], device: torch.device | str) -> Alignment:
        """As `alignment.align`, of the positions that are scored and of the rows of `reading`."""
        scored = target[: len(target) - self.drop_last_token]
        if self.position_truncation:
            return {WHOLE: torch.eye(len(judge), len(scored), dtype=torch.float64, device=device)}
        found = align(scored, judge, device)
        if not self.bos_shift or not scored:
            return found
        shifted = {interval: shares.roll(1, dims=1) for interval, shares in found.items()}
        for shares in shifted.values():
            shares[:, 0] = 0
        first = torch.zeros(len(judge), len(scored), dtype=torch.float64, device=device)
        first[0, 0] = 1
        shifted[WHOLE] = shifted[WHOLE] + first if WHOLE in shifted else first
        return shifted


@dataclass(frozen=True, eq=False)
class InverseMap(VocabularyMap):
    """The target's tokens of every judge token: 1/n of it for each of its n pieces, wherever they lie."""

    def matrix(self, interval: Interval, dtype: torch.dtype) -> torch.Tensor:
        """Sparse (V, judge_size), the same for every interval; its columns sum to 1, or are empty."""
        del interval
        return torch.sparse_coo_tensor(
            torch.stack([self.target, self.judge]),
            (self.end - self.begin).to(dtype),
            (len(self.mapped), self.judge_size),
            check_invariants=False,
        ).coalesce()


def inverse_map(
    target: PreTrainedTokenizerBase,
    judge: PreTrainedTokenizerBase,
    target_size: int,
    judge_size: int,
    device: torch.device | str = "cpu",
) -> InverseMap:
    """Spell every judge token in the target's tokens, from its name.

    Only the byte-level space and the underscore are translated, so that other names, such as those of line breaks, are
    spelled as they are written. A target token that no judge token needs has no gradient.

    Args:
        target: Tokenizer of the model whose logits are relaxed.
        judge: Tokenizer of the model that reads.
        target_size: Width of the target's logits.
        judge_size: Rows of the judge's embeddings.
        device: Where the map will be used.
    """
    rows = []
    for name, index in sorted(judge.get_vocab().items(), key=lambda item: item[1]):
        pieces = target(name.translate(BLANKS), add_special_tokens=False)["input_ids"]
        rows += [(piece, index, place / len(pieces), (place + 1) / len(pieces)) for place, piece in enumerate(pieces)]
    ids = torch.tensor([row[:2] for row in rows], device=device).reshape(-1, 2)
    ends = torch.tensor([row[2:] for row in rows], dtype=torch.float64, device=device).reshape(-1, 2)
    mapped = torch.ones(target_size, dtype=torch.bool, device=device)
    missing = target_size - len(ids[:, 0].unique())
    return InverseMap("inverse", ids[:, 0], ids[:, 1], ends[:, 0], ends[:, 1], mapped, missing, judge_size)
