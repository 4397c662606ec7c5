"""The search for the window of layers with the highest count, and which windows are as good as the best one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ballast.evaluate.statistics import bootstrap_mean_interval
from ballast.locate.layers.gap_curve import Window

Count = Callable[[Window], int]
GRID_REACH = 4


def alternate(count: Count, guess: Window, layers: int) -> Window:
    """Move one end at a time to where the count is highest, until neither end moves.

    The published search (arXiv 2408.17003, section 3.3) moves each end once, so its result hangs on the guess. A window
    moves only to a higher count, so the search ends.

    Args:
        count: Of a window; asked more than once for the same.
        guess: Where to begin.
        layers: Of the model.
    """
    best = guess
    while True:
        before = best
        best = highest(count, [best, *(Window(best.start, end) for end in range(best.start + 1, layers + 1))])
        best = highest(count, [best, *(Window(start, best.end) for start in reversed(range(best.end)))])
        if best == before:
            return best


def grid(count: Count, guess: Window, layers: int) -> Window:
    """The highest count among all windows whose ends are within four layers of those of the guess."""
    starts = range(max(0, guess.start - GRID_REACH), guess.start + GRID_REACH + 1)
    ends = range(guess.end - GRID_REACH, min(layers, guess.end + GRID_REACH) + 1)
    windows = [Window(start, end) for start in starts for end in ends if start < end]
    return highest(count, [guess, *sorted(windows, key=lambda window: window.end - window.start)])


def highest(count: Count, windows: Iterable[Window]) -> Window:
    """The window with the highest count; of equal ones the first, so the present one and then short ones come first."""
    return max(windows, key=count)


def plateau(outcomes: Mapping[Window, Sequence[bool]], best: Window, seed: int) -> list[Window]:
    """All windows whose rate is not significantly below that of the best.

    Args:
        outcomes: Per window whether the event happened at each prompt; the prompts are the same.
        best: One of the windows.
        seed: Of the paired bootstrap over prompts; its 95 % interval of the difference decides.
    """
    found = []
    for window, events in outcomes.items():
        differences = [float(one) - float(other) for one, other in zip(outcomes[best], events, strict=True)]
        interval = bootstrap_mean_interval(differences, seed)
        if interval is None or interval.low <= 0:
            found.append(window)
    return sorted(found)
