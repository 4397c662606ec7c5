"""The search on counts that are known, and what counts as equally good."""

from __future__ import annotations

from collections import Counter

import pytest

from ballast.locate.layers.gap_curve import Window
from ballast.locate.layers.window_search import alternate, grid, plateau


class Counts:
    """Counts of windows, and which were asked for."""

    def __init__(self, counts: dict[tuple[int, int], int]) -> None:
        self.counts = counts
        self.asked: Counter[Window] = Counter()

    def __call__(self, window: Window) -> int:
        assert 0 <= window.start < window.end
        self.asked[window] += 1
        return self.counts.get((window.start, window.end), 0)


def hill(top: Window, layers: int) -> Counts:
    """Counts that fall with the distance of either end from those of `top`."""
    spans = [(start, end) for start in range(layers) for end in range(start + 1, layers + 1)]
    return Counts({(s, e): 50 - 2 * abs(s - top.start) - 3 * abs(e - top.end) for s, e in spans})


@pytest.mark.parametrize("guess", [Window(5, 6), Window(0, 1), Window(11, 12), Window(0, 12), Window(3, 7)])
def test_alternate_finds_the_top_of_a_hill(guess: Window) -> None:
    assert alternate(hill(Window(3, 7), 12), guess, 12) == Window(3, 7)


def test_alternate_asks_for_one_end_at_a_time() -> None:
    counts = hill(Window(3, 7), 12)
    alternate(counts, Window(5, 6), 12)
    ends = {(5, end) for end in range(6, 13)}
    starts = {(start, 7) for start in range(7)}
    again = {(3, end) for end in range(4, 13)}
    assert {tuple(window) for window in counts.asked} == ends | starts | again


def test_alternate_goes_on_until_neither_end_moves() -> None:
    """A ridge on which each step opens the next one; moving each end once stops at (1, 5)."""
    ridge = Counts({(2, 4): 1, (2, 5): 2, (1, 5): 3, (1, 6): 4, (0, 6): 5, (9, 10): 99})
    assert alternate(ridge, Window(2, 4), 10) == Window(0, 6)


@pytest.mark.parametrize("search", [alternate, grid])
def test_equal_counts_leave_the_guess(search: object) -> None:
    assert callable(search)
    assert search(lambda _: 7, Window(4, 6), 12) == Window(4, 6)


@pytest.mark.parametrize("search", [alternate, grid])
def test_of_equal_windows_the_shorter_is_taken(search: object) -> None:
    assert callable(search)
    assert search(Counts({(4, 8): 3, (4, 7): 3, (4, 9): 3}), Window(4, 6), 12) == Window(4, 7)
    assert search(Counts({(1, 6): 3, (2, 6): 3, (0, 6): 3}), Window(4, 6), 12) == Window(2, 6)


def test_grid_asks_for_all_windows_within_four_layers() -> None:
    counts = Counts({(1, 11): 5})
    assert grid(counts, Window(5, 8), 20) == Window(1, 11)
    near = {(s, e) for s in range(20) for e in range(21) if abs(s - 5) <= 4 and abs(e - 8) <= 4 and s < e}
    assert {tuple(window) for window in counts.asked} == near


def test_grid_stays_within_the_model() -> None:
    counts = Counts({})
    grid(counts, Window(2, 5), 6)
    assert {tuple(window) for window in counts.asked} == {(s, e) for s in range(6) for e in range(s + 1, 7)}


def events(n: int, *happened: range) -> list[bool]:
    return [any(number in span for span in happened) for number in range(n)]


class TestPlateau:
    BEST = Window(3, 6)

    def within(self, other: list[bool], best: list[bool]) -> bool:
        found = plateau({Window(1, 2): other, self.BEST: best}, self.BEST, seed=0)
        assert self.BEST in found
        return Window(1, 2) in found

    def test_a_difference_of_one_prompt(self) -> None:
        assert self.within(events(40, range(19)), events(40, range(20)))

    def test_none_against_half_of_the_prompts(self) -> None:
        assert not self.within(events(40), events(40, range(20)))

    def test_prompts_are_paired(self) -> None:
        """14 against 20 of 40: the same 14 and 6 more, or others altogether."""
        best = events(40, range(20))
        assert not self.within(events(40, range(14)), best)
        assert self.within(events(40, range(20, 34)), best)

    def test_windows_come_in_order(self) -> None:
        same = events(10, range(5))
        spans = [Window(4, 5), self.BEST, Window(0, 9), Window(0, 2)]
        assert plateau(dict.fromkeys(spans, same), self.BEST, seed=0) == sorted(spans)

    def test_one_prompt_tells_nothing(self) -> None:
        assert self.within([False], [True])
