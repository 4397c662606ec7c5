"""Stage B of the safety layers: how strongly and in which way to scale, and which window then refuses the most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from ballast.locate.layers.gap_curve import Window
from ballast.locate.layers.over_rejection import DEGENERATE, MODES, UNSCALED, Mode, OverRejection
from ballast.locate.layers.window_search import alternate, grid, plateau

SEARCHES = {"alternate": alternate, "grid": grid}
ALPHAS = (1.05, 1.1, 1.15, 1.2, 1.3)
PLAIN_ALPHA = 1.1
LEAST_MOVE = 0.05
LARGEST_COST = 0.2


class Searched(NamedTuple):
    """What the search found.

    Attributes:
        alpha: The factor it scaled with.
        window: The window with the most refusals.
        shares: (L,) fp32, share of the windows on the plateau that hold each layer.
        notes: For the record.
    """

    alpha: float
    window: Window
    shares: torch.Tensor
    notes: dict[str, Any]


def way_of_scaling(
    measured: OverRejection, window: Window, alpha: float, asked: Mode | Literal["auto"]
) -> tuple[Mode, dict[str, Any]]:
    """The way that was asked for; for `auto` that of the weights, unless it does less than scaling contributions.

    Where nothing cancels it, it does more: alpha enters a contribution once with each projection on its way. Layers are
    scaled one by one for that, since scaling the contributions of all layers is cancelled too, by the final norm.
    """
    if asked != "auto":
        return asked, {"mode_used": asked}
    layers = [Window(layer, layer + 1) for layer in range(*window)]
    changes = {mode: sum(measured.logit_change(layer, alpha, mode) for layer in layers) for mode in MODES}
    cancelled = changes["output"] < changes["residual"]
    used: Mode = "residual" if cancelled else "output"
    rounded = {mode: round(change, 4) for mode, change in changes.items()}
    return used, {"mode_used": used, "scale_invariant": cancelled, "logit_change": rounded}


def most_refusing(
    measured: OverRejection, guess: Window, mode: Mode, alpha: float | None, search: str, seed: int
) -> Searched:
    """Search from the guess for the window whose scaling raises refusals of benign prompts most.

    Args:
        measured: Answers and judges.
        guess: Where to begin.
        mode: How layers are scaled.
        alpha: The factor; None chooses it at the guess.
        search: `alternate` or `grid`.
        seed: Of the bootstrap that tells the plateau.
    """

    def window_of(factor: float) -> Window:
        return UNSCALED if factor == 1 else guess

    chosen, why = alpha, "given"
    if chosen is None:
        chosen, why = choose_alpha(
            lambda factor: measured.refusal_rate(window_of(factor), factor, mode),
            lambda factor: measured.utility_loss(window_of(factor), factor, mode),
        )
    outcomes: dict[Window, list[bool]] = {}

    def count(window: Window) -> int:
        outcomes[window] = measured.refused(window, chosen, mode)
        return sum(outcomes[window])

    layers = int(measured.lm.model.config.get_text_config().num_hidden_layers)
    best = SEARCHES[search](count, guess, layers)
    equal = plateau(outcomes, best, seed)
    shares = torch.zeros(layers)
    for window in equal:
        shares[slice(*window)] += 1 / len(equal)
    unscaled = sum(measured.refused(UNSCALED, 1, mode))
    notes: dict[str, Any] = {
        "alpha_used": chosen,
        "alpha_why": why,
        "benign_used": len(measured.benign),
        "benign_hash": measured.benign.hash,
        "refused_unscaled": unscaled,
        "refused": sum(outcomes[best]),
        "degenerate": measured.verdicts(best, chosen, mode).count(DEGENERATE),
        "window": list(best),
        "windows": [[*window, sum(events)] for window, events in sorted(outcomes.items())],
        "plateau": [list(window) for window in equal],
    }
    if sum(outcomes[best]) <= unscaled:
        notes["warning"] = "No window raises the number of refusals above that of the model as it is"
    return Searched(chosen, best, shares, notes)


def choose_alpha(rate: Callable[[float], float], loss: Callable[[float], float]) -> tuple[float, str]:
    """The smallest factor that moves the refusal rate by 5 points and raises the utility loss by at most 20 %.

    Args:
        rate: Refusal rate with the guessed window scaled by a factor; 1 is the unscaled model.
        loss: Utility loss in the same way; asked only where the rate moved.

    Returns:
        The factor, 1.1 if there is none, and a sentence that says which.
    """
    for alpha in ALPHAS:
        if abs(rate(alpha) - rate(1)) >= LEAST_MOVE and loss(alpha) <= (1 + LARGEST_COST) * loss(1):
            return alpha, "The smallest that moves the refusal rate by 5 points and utility by no more than 20 %"
    return PLAIN_ALPHA, "No factor moves the refusal rate by 5 points and utility by no more than 20 %"
