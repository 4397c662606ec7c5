"""Alignment of two vocabularies: numbers by hand, a brute-force twin, and the transpose against autograd."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.locate.soft.alignment import Alignment, Bridge, align, vocabulary_map
from ballast.locate.soft.token_bytes import Span, TokenBytes, spelled_text, token_bytes
from tests.vocabularies import bare, llama_tokenizer, pair_tokenizer
from tests.zoo import tiny_tokenizer

torch.set_num_threads(1)

WHOLE = (Fraction(0), Fraction(1))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shares_of(alignment: Alignment) -> torch.Tensor:
    """A, all intervals together."""
    return torch.stack(list(alignment.values())).sum(0)


def bridge_between(target: TokenBytes, judge: TokenBytes, *, padding: int = 0, width: int = 5) -> Bridge:
    """Both models have `padding` rows more than their tokenizers have tokens."""
    sizes = len(target.content) + padding, len(judge.content) + padding
    return Bridge(random(sizes[1], width, seed=8), vocabulary_map(target, judge, *sizes))


def spans_of(vocabulary: TokenBytes, ids: list[int]) -> list[Span]:
    spelled = spelled_text([vocabulary.content[token] for token in ids], leading_space=True)
    assert spelled is not None
    return spelled[1]


def mean_embedding(
    bridge: Bridge, target: TokenBytes, judge: TokenBytes, token: int, low: float, high: float
) -> torch.Tensor:
    """ebar: the judge's embeddings of the bytes of a target token in [low, high), byte for byte."""
    pieces = [token] if target.content == judge.content else judge.spell(target.content[token])
    assert pieces is not None
    length = len(target.content[token])
    total, at = torch.zeros(bridge.table.shape[1], dtype=torch.float64), 0
    for piece in pieces:
        begin, end = at / length, (at + len(judge.content[piece])) / length
        total += max(0.0, min(end, high) - max(begin, low)) / (high - low) * bridge.table[piece]
        at += len(judge.content[piece])
    return total


def twin(
    bridge: Bridge,
    target: TokenBytes,
    judge: TokenBytes,
    p: torch.Tensor,
    y: list[int],
    u: list[int],
    spans: list[Span],
) -> torch.Tensor:
    """Soft embeddings (S, d) by loops over judge tokens, target tokens and the vocabulary."""
    rows = []
    for token, (begin, end) in zip(u, spans, strict=True):
        row = bridge.table[token]
        for position, (a, b) in enumerate(spans_of(target, y)):
            shared = min(end, b) - max(begin, a)
            if shared <= 0:
                continue
            low, high = (max(begin, a) - a) / (b - a), (min(end, b) - a) / (b - a)
            own = mean_embedding(bridge, target, judge, y[position], low, high)
            for other in range(p.shape[1]):
                known = other < len(target.content) and target.content[other] and judge.spell(target.content[other])
                if known:
                    change = mean_embedding(bridge, target, judge, other, low, high) - own
                    row = row + shared / (end - begin) * p[position, other] * change
        rows.append(row)
    return torch.stack(rows)


def one_hot(y: list[int], size: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(y), size).double()


class TestByHand:
    TARGET = bare([b"ab", b"c", b"ca", b"b"], end=True)
    AB, C, CA, B, END = range(5)
    JUDGE = bare([b"a", b"b", b"c"])

    def test_a_target_token_over_two_judge_tokens(self) -> None:
        """y = (ab, c), read as a, b, c."""
        bridge = bridge_between(self.TARGET, self.JUDGE)
        y = [self.AB, self.C]
        alignment = align(spans_of(self.TARGET, y), [(0, 1), (1, 2), (2, 3)])
        gradient = random(3, 5)
        (h1, h2, h3) = (gradient @ bridge.table.t()).tolist()
        d = bridge.pull_back(gradient, torch.tensor(y), alignment).tolist()
        a, b, c = range(3)
        assert d[0] == pytest.approx([h1[a] + h2[b], h1[c] + h2[c], h1[c] + h2[a], h1[b] + h2[b], h1[a] + h2[b]])
        assert d[1] == pytest.approx([(h3[a] + h3[b]) / 2, h3[c], (h3[c] + h3[a]) / 2, h3[b], h3[c]])

    def test_a_judge_token_over_two_target_tokens(self) -> None:
        """y = (a, b, c), read as ab, c."""
        target, judge = bare([b"a", b"b", b"c"]), bare([b"ab", b"c", b"a", b"b"])
        bridge = bridge_between(target, judge)
        alignment = align([(0, 1), (1, 2), (2, 3)], [(0, 2), (2, 3)])
        gradient = random(2, 5)
        h1, h2 = (gradient @ bridge.table.t()).tolist()
        d = bridge.pull_back(gradient, torch.tensor([0, 1, 2]), alignment).tolist()
        single = [2, 3, 1]  # the judge's a, b, c
        assert d[0] == pytest.approx([h1[token] / 2 for token in single])
        assert d[1] == pytest.approx(d[0])
        assert d[2] == pytest.approx([h2[token] for token in single])

    def test_a_character_split_over_two_tokens(self) -> None:
        """y = (a + first byte of é, second byte of é), read as a, é: each wrote half of the é."""
        first, second = "é".encode()[:1], "é".encode()[1:]
        target = bare([b"a" + first, second, b"a"])
        judge = bare([b"a", first + second, first, second])
        a, _, one, two = range(4)
        bridge = bridge_between(target, judge)
        y = [0, 1]
        alignment = align(spans_of(target, y), [(0, 1), (1, 3)])
        assert {tuple(map(float, interval)): shares.tolist() for interval, shares in alignment.items()} == {
            (0.0, 0.5): [[1, 0], [0, 0]],
            (0.5, 1.0): [[0, 0], [0.5, 0]],
            (0.0, 1.0): [[0, 0], [0, 0.5]],
        }
        gradient = random(2, 5)
        h1, h2 = (gradient @ bridge.table.t()).tolist()
        d = bridge.pull_back(gradient, torch.tensor(y), alignment).tolist()
        assert d[0] == pytest.approx([h1[a] + h2[one] / 2, h1[two] + h2[two] / 2, h1[a] + h2[a] / 2])
        assert d[1] == pytest.approx([(h2[a] + h2[one]) / 4, h2[two] / 2, h2[a] / 2])

    def test_a_judge_token_that_also_covers_the_template(self) -> None:
        """The judge reads `>a` as one token and `b` with the first letter behind the answer: half of each is soft."""
        target = bare([b"a", b"b"])
        bridge = bridge_between(target, bare([b">a", b"b<", b"a", b"b"]))
        y = [0, 1]
        alignment = align([(0, 1), (1, 2)], [(-1, 1), (1, 3)])
        assert shares_of(alignment).tolist() == [[0.5, 0], [0, 0.5]]
        p = torch.tensor([[0.0, 1.0], [0.25, 0.75]], dtype=torch.float64)
        hard = bridge.table[[0, 1]]
        found = bridge.soft_embeddings(p, torch.tensor(y), hard, alignment)
        a, b = bridge.table[2], bridge.table[3]
        torch.testing.assert_close(found, torch.stack([hard[0] + (b - a) / 2, hard[1] + (a - b) / 8]))

    def test_a_token_that_the_judge_cannot_write(self) -> None:
        """It stands for the token of the answer; so does the padding, also where the tokenizer has more tokens."""
        target, judge = bare([b"a", b"b", b"x"], end=True), bare([b"a", b"b"])
        vocabularies = vocabulary_map(target, judge, 6, 2)
        assert (vocabularies.mapped.tolist(), vocabularies.without_counterpart) == ([True, True] + [False] * 4, 1)
        d = Bridge(random(2, 5), vocabularies).pull_back(
            random(1, 5, seed=1), torch.tensor([1]), align([(0, 1)], [(0, 1)])
        )
        assert (d[0, 2:] == d[0, 1]).all()
        assert d[0, 0] != d[0, 1]
        assert vocabulary_map(target, judge, 2, 2).mapped.tolist() == [True, True]

    def test_what_the_judge_does_not_read_has_no_gradient(self) -> None:
        bridge = bridge_between(self.TARGET, self.JUDGE)
        y = [self.C, self.B, self.END]
        alignment = align([(0, 1), (1, 1), (1, 1)], [(0, 1)])
        d = bridge.pull_back(random(1, 5), torch.tensor(y), alignment)
        assert d[0].abs().min() > 0
        assert not d[1:].any()


def read_by(judge: TokenBytes, text: bytes) -> tuple[list[int], list[Span]]:
    """Tokens of a text whose bytes the vocabulary spells, and their spans."""
    ids = judge.spell(text)
    assert ids is not None
    spans, at = [], 0
    for token in ids:
        spans.append((at, at + len(judge.content[token])))
        at = spans[-1][1]
    return ids, spans


PAIRS = {
    "same": (token_bytes(pair_tokenizer()), token_bytes(pair_tokenizer())),
    "pairs and bytes": (token_bytes(pair_tokenizer()), token_bytes(tiny_tokenizer())),
    "bytes and pairs": (token_bytes(tiny_tokenizer()), token_bytes(pair_tokenizer())),
    "pairs and llama": (token_bytes(pair_tokenizer()), token_bytes(llama_tokenizer())),
    "llama and bytes": (token_bytes(llama_tokenizer()), token_bytes(tiny_tokenizer())),
    "bytes and llama": (token_bytes(tiny_tokenizer()), token_bytes(llama_tokenizer())),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[TokenBytes, TokenBytes]:
    return PAIRS[request.param]


def exchange(
    target: TokenBytes, judge: TokenBytes, text: bytes = b" Sorry, no"
) -> tuple[list[int], list[int], Alignment]:
    y = target.spell(text)
    assert y is not None
    u, spans = read_by(judge, text)
    return y, u, align(spans_of(target, y), spans)


class TestMatrices:
    def test_rows_sum_to_one(self, pair: tuple[TokenBytes, TokenBytes]) -> None:
        bridge = bridge_between(*pair, padding=3)
        y, u, alignment = exchange(*pair)
        torch.testing.assert_close(shares_of(alignment).sum(1), torch.ones(len(u), dtype=torch.float64))
        mapped = bridge.vocabularies.mapped
        assert mapped[y].all()
        assert not mapped[:4].any()
        assert not mapped[-3:].any()
        for interval in {WHOLE, (Fraction(1, 3), Fraction(1, 2)), *alignment}:
            sums = bridge.vocabularies.matrix(interval, torch.float64).to_dense().sum(1)
            torch.testing.assert_close(sums, mapped.double())

    def test_are_the_twins(self, pair: tuple[TokenBytes, TokenBytes]) -> None:
        target, judge = pair
        bridge = bridge_between(*pair, padding=3)
        y, u, alignment = exchange(*pair)
        p = random(len(y), len(target.content) + 3).softmax(1).requires_grad_()
        found = bridge.soft_embeddings(p, torch.tensor(y), bridge.table[u], alignment)
        expected = twin(bridge, target, judge, p, y, u, read_by(judge, b" Sorry, no")[1])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

        gradient = random(*found.shape, seed=3)
        (by_autograd,) = torch.autograd.grad((found * gradient).sum(), p)
        pulled = bridge.pull_back(gradient, torch.tensor(y), alignment)
        # a row of D is known up to a constant: the twin measures from y
        anchored = pulled - pulled.gather(1, torch.tensor(y).unsqueeze(1))
        torch.testing.assert_close(pulled, by_autograd, rtol=1e-12, atol=1e-12)
        (of_twin,) = torch.autograd.grad((expected * gradient).sum(), p)
        torch.testing.assert_close(anchored, of_twin, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_are_exact_at_the_answer_itself(self, pair: tuple[TokenBytes, TokenBytes], dtype: torch.dtype) -> None:
        bridge = bridge_between(*pair, padding=3)
        bridge = dataclasses.replace(bridge, table=bridge.table.to(dtype))
        y, u, alignment = exchange(*pair)
        hard = bridge.table[u]
        p = one_hot(y, len(bridge.vocabularies.mapped)).to(dtype)
        assert torch.equal(bridge.soft_embeddings(p, torch.tensor(y), hard, alignment), hard)


class TestCoincidingVocabularies:
    def test_spelling_gives_the_identity(self) -> None:
        """A judge with one token more is spelled; what it finds is what the identity finds, special tokens included."""
        target = PAIRS["same"][0]
        more = dataclasses.replace(target, content=(*target.content, b"more"), written=(*target.written, b"more"))
        size = len(target.content)
        table = random(size + 1, 5)
        same = Bridge(table, vocabulary_map(target, target, size + 2, size + 1))
        spelled = Bridge(table, vocabulary_map(target, more, size + 2, size + 1))
        assert (same.vocabularies.kind, spelled.vocabularies.kind) == ("identity", "offsets")
        y, u, alignment = exchange(target, target)
        assert y == u
        assert list(alignment) == [WHOLE]
        assert torch.equal(alignment[WHOLE], torch.eye(len(y), dtype=torch.float64))
        p, gradient = random(len(y), size + 2).softmax(1), random(len(y), 5)
        for bridge in (same, spelled):
            d = bridge.pull_back(gradient, torch.tensor(y), alignment)
            plain = gradient @ table[:size].t()
            torch.testing.assert_close(d[:, 4:size], plain[:, 4:], rtol=0, atol=1e-12)
            for special in (0, 1, 2, 3, size, size + 1):
                assert torch.equal(d[:, special], d.gather(1, torch.tensor(y).unsqueeze(1)).squeeze(1))
            moved = p.clone()
            moved[:, [0, 1, 2, 3, size, size + 1]] = 0
            moved[range(len(y)), y] += 1 - moved.sum(1)
            found = bridge.soft_embeddings(p, torch.tensor(y), table[u], alignment)
            torch.testing.assert_close(found, moved[:, :size] @ table[:size], rtol=0, atol=1e-12)


def cuts(length: int) -> st.SearchStrategy[list[Span]]:
    """Ways to cut bytes into tokens."""
    inner = st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set())
    return inner.map(lambda found: list(zip([0, *sorted(found)], [*sorted(found), length], strict=True)))


@settings(deadline=None)
@given(st.integers(1, 12).flatmap(lambda length: st.tuples(cuts(length), cuts(length))))
def test_every_byte_is_counted_once(spans: tuple[list[Span], list[Span]]) -> None:
    """Whatever the cuts: A is a row-stochastic overlap, and the parts of a target token tile it."""
    target, judge = spans
    alignment = align(target, judge)
    shares = shares_of(alignment)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(judge), dtype=torch.float64))
    written = (shares.T @ torch.tensor([end - begin for begin, end in judge], dtype=torch.float64)).tolist()
    assert written == pytest.approx([end - begin for begin, end in target])
    for position in range(len(target)):
        counts = {interval: int((entries[:, position] > 0).sum()) for interval, entries in alignment.items()}
        parts = sorted(interval for interval, count in counts.items() for _ in range(count))
        assert (parts[0][0], parts[-1][1]) == (0, 1)
        assert all(one[1] == other[0] for one, other in pairwise(parts))
