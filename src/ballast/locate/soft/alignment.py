"""How an answer in one model's tokens reads in another model's tokens, and the transpose of that for gradients.

Both models read the same bytes. Target token t covers [a, b) of them, judge token s covers [a', b'). Then

    A[s,t]       = |[a,b) and [a',b')| / (b' - a')           the share of s that t wrote
    [lo,hi)      = the part of t that s covers, as fractions of t's length
    M[lo,hi][v,:]: the judge's tokens of the bytes of target token v, each by its share of that part of the bytes
    e_s          = E[u_s] + sum_t A[s,t] * sum_v (p[t,v] - 1[v = y_t]) * M[lo,hi][v,:] E
    D[t,v]       = sum_s A[s,t] * <dF/de_s, M[lo,hi][v,:] E>

u are the judge's tokens, y the target's, E the judge's input embeddings, p the probabilities that are relaxed. The form
of e is exact when p is one-hot at y, whatever the two vocabularies are; where they coincide it is p E. D is dF/dp. A
token v without bytes, such as the end of a turn, or that the judge cannot write, stands for y_t: as if nothing changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from ballast.locate.soft import pseudo_logits
from ballast.locate.soft.token_bytes import Span, TokenBytes

Interval = tuple[Fraction, Fraction]
Alignment = dict[Interval, torch.Tensor]  # by [lo, hi): the entries (S, T) of A whose pair has this interval


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """The judge's tokens of every target token: one entry per piece, in the order of the target's ids.

    Attributes:
        kind: `identity` if both vocabularies spell every id alike, else `offsets`.
        target: (P,) id of the target token that the piece belongs to.
        judge: (P,) id of the judge's token.
        begin: (P,) where the piece begins in the target token's bytes, as a fraction; fp64.
        end: (P,) where it ends.
        mapped: (V,) bool, whether a target token has pieces.
        without_counterpart: Target tokens with bytes that the judge's vocabulary cannot write.
        judge_size: The judge's vocabulary size, rows that no token uses included.
    """

    kind: str
    target: torch.Tensor
    judge: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor
    mapped: torch.Tensor
    without_counterpart: int
    judge_size: int

    def matrix(self, interval: Interval, dtype: torch.dtype) -> torch.Tensor:
        """M[lo,hi], sparse (V, judge_size); a row of a mapped token sums to 1, the others are empty."""
        low, high = float(interval[0]), float(interval[1])
        weight = (self.end.clamp(max=high) - self.begin.clamp(min=low)) / (high - low)
        kept = weight > 0
        return torch.sparse_coo_tensor(
            torch.stack([self.target[kept], self.judge[kept]]),
            weight[kept].to(dtype),
            (len(self.mapped), self.judge_size),
            check_invariants=False,
        ).coalesce()


def vocabulary_map(
    target: TokenBytes, judge: TokenBytes, target_size: int, judge_size: int, device: torch.device | str = "cpu"
) -> VocabularyMap:
    """Spell every target token in the judge's tokens.

    Args:
        target: Vocabulary of the model whose logits are relaxed.
        judge: Vocabulary of the model that reads.
        target_size: Width of the target's logits.
        judge_size: Rows of the judge's embeddings.
        device: Where the map will be used.
    """
    same = target.content == judge.content
    rows = []
    for index, spelled in enumerate(target.content[:target_size]):
        if not spelled:
            continue
        at = 0
        for piece in [index] if same else judge.spell(spelled) or []:
            end = at + len(judge.content[piece])
            rows.append((index, piece, at / len(spelled), end / len(spelled)))
            at = end
    ids = torch.tensor([row[:2] for row in rows], device=device).reshape(-1, 2)
    ends = torch.tensor([row[2:] for row in rows], dtype=torch.float64, device=device).reshape(-1, 2)
    mapped = torch.zeros(target_size, dtype=torch.bool, device=device)
    mapped[ids[:, 0]] = True
    missing = sum(bool(spelled) for spelled in target.content[:target_size]) - int(mapped.sum())
    kind = "identity" if same else "offsets"
    return VocabularyMap(kind, ids[:, 0], ids[:, 1], ends[:, 0], ends[:, 1], mapped, missing, judge_size)


def align(target: Sequence[Span], judge: Sequence[Span], device: torch.device | str = "cpu") -> Alignment:
    """Pair the tokens that share bytes.

    Args:
        target: Spans of the target's tokens in the bytes that the judge reads of the answer.
        judge: Spans of the judge's tokens; one that also covers bytes around the answer begins below 0 or ends behind.
        device: Where the result will be used.

    Returns:
        By interval the entries of A, fp64 (S, T). Over all intervals a row sums to 1, or to less where the judge's
        token also covers bytes that are not the answer's.
    """
    found: Alignment = defaultdict(lambda: torch.zeros(len(judge), len(target), dtype=torch.float64))
    for place, (begin, end) in enumerate(judge):
        for position, (low, high) in enumerate(target):
            shared = min(end, high) - max(begin, low)
            if shared > 0:
                length = high - low
                interval = (Fraction(max(begin - low, 0), length), Fraction(min(end, high) - low, length))
                found[interval][place, position] = shared / (end - begin)
    return {interval: shares.to(device) for interval, shares in found.items()}


@dataclass(frozen=True, eq=False)
class Bridge:
    """From the target's probabilities to the judge's embeddings and back; see the module's text.

    Attributes:
        table: (judge_size, d) the judge's input embeddings, fp32 or wider.
        vocabularies: The judge's tokens of every target token.
    """

    table: torch.Tensor
    vocabularies: VocabularyMap

    def soft_embeddings(
        self, probabilities: torch.Tensor, ids: torch.Tensor, hard: torch.Tensor, alignment: Alignment
    ) -> torch.Tensor:
        """What the judge reads when every target token is a mixture.

        Args:
            probabilities: (T, V) in the dtype of the table.
            ids: (T,) the tokens y of the answer.
            hard: (S, d) the judge's embeddings of its own tokens u.
            alignment: From `align`.

        Returns:
            (S, d). Equal to `hard`, bit for bit, where `probabilities` is one-hot at `ids`.
        """
        mapped = self.vocabularies.mapped
        unmapped = probabilities.masked_fill(mapped, 0).sum(1, keepdim=True)
        change = probabilities.masked_fill(~mapped, 0).scatter_add(1, ids.unsqueeze(1), unmapped - 1)  # rows sum to 0
        read = torch.zeros(len(hard), len(self.table), dtype=hard.dtype, device=hard.device)
        for interval, shares in alignment.items():
            matrix = self.vocabularies.matrix(interval, hard.dtype)
            read = read + torch.sparse.mm(matrix.t(), (shares.to(hard.dtype) @ change).t()).t()
        return hard + read @ self.table

    def pull_back(
        self,
        gradient: torch.Tensor,
        ids: torch.Tensor,
        alignment: Alignment,
        saturated: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The gradient with respect to `probabilities` of what `soft_embeddings` gave; its exact transpose.

        Args:
            gradient: (S, d) gradient with respect to the judge's embeddings.
            ids: (T,) the tokens y of the answer.
            alignment: From `align`.
            saturated: (S,) the judge's tokens u, if it read them as saturated logits (`pseudo_logits.py`): what goes
                back is then the gradient with respect to these.

        Returns:
            D, (T, V); 0 at positions that no judge token reads.
        """
        per_token = gradient @ self.table.t()  # (S, judge_size)
        if saturated is not None:
            per_token = pseudo_logits.logit_gradient(saturated.to(gradient.device), per_token)
        found = torch.zeros(len(ids), len(self.vocabularies.mapped), dtype=gradient.dtype, device=gradient.device)
        for interval, shares in alignment.items():
            matrix = self.vocabularies.matrix(interval, gradient.dtype)
            found += torch.sparse.mm(matrix, per_token.t() @ shares.to(gradient.dtype)).t()
        return torch.where(self.vocabularies.mapped, found, found.gather(1, ids.unsqueeze(1)))
