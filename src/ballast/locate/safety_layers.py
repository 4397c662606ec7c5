"""Safety layers: the contiguous layers in which a model tells harmful prompts from normal ones (arXiv 2408.17003).

Stage A reads the window off the gap curve (`gap_curve.py`), with a forward pass over the prompts and nothing else.
Stage B starts from that window and looks for the one whose scaling makes the model refuse the most harmless prompts
that sound alarming (`over_rejection.py`, `window_search.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ballast.errors import PromptError, UsageError
from ballast.judges import get_judge
from ballast.locate.last_states import last_states
from ballast.locate.layers.gap_curve import Angle, GapCurve, Window, gap_curve
from ballast.locate.layers.layer_search import PLAIN_ALPHA, SEARCHES, most_refusing, way_of_scaling
from ballast.locate.layers.over_rejection import UNSCALED, OverRejection
from ballast.locate.registry import Task, UnitsFound, register
from ballast.models.units import layer_groups
from ballast.prompts import load_prompts
from ballast.regions import exact_fraction
from ballast.regions.metadata import Granularity

DIGITS = 4  # of degrees and ratios in the record


@register("safety_layers")
@dataclass(frozen=True)
class SafetyLayers:
    """Settings of the safety layers.

    Attributes:
        stage: `a` takes the window of the gap curve; `b` searches from there on.
        normal: Ordinary prompts, at least two; the located prompts are compared with them.
        angle: `angle_of_mean` takes the arccos of the mean cosine, as published; `mean_of_angles` the mean of arccos.
        benign: Stage b: harmless prompts that sound alarming, whose refusals are counted.
        judge: Stage b: tells refusals.
        max_new_tokens: Stage b: tokens after which an answer is cut.
        search: Stage b: `alternate` moves one end of the window at a time until neither moves; `grid` tries all windows
            whose ends are within four layers of the first guess.
        mode: How layers are scaled. `output`: their weights; `residual`: what they add to the residual stream; `auto`:
            their weights, unless norms cancel that.
        alpha: Factor of the scaling, above 1; None tries 1.05 to 1.3 in stage b and takes 1.1 in stage a.
        utility: Prompts with responses, for the choice of alpha and for `utility_fraction`.
        utility_fraction: Share of all layers, those that utility needs most, to be left out of the window; 0 for none.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "layer"
    reference: ClassVar[str] = "Li et al., ICLR 2025, arXiv 2408.17003"
    fidelity: ClassVar[str] = (
        "paper: the gap of mean angles and the search for the window whose scaling raises refusals most; deviations: "
        "the model's own chat template, all pairs instead of 500 random ones, bands by bootstrap over prompts, the "
        "first guess by rule instead of by eye, refusals judged by a program, the search repeated until nothing "
        "changes, alpha by rule, biases not scaled, what norms cancel scaled in the residual stream; stage a as a "
        "method of its own and the removal of layers that utility needs are ours"
    )
    needs: ClassVar[str] = "harmful prompts and normal ones; stage b also benign ones that sound alarming"

    stage: Literal["a", "b"] = "a"
    normal: str = "builtin/borderline/tune"
    angle: Angle = "angle_of_mean"
    benign: str = "builtin/borderline/select"
    judge: str = "keyword"
    max_new_tokens: int = 16
    search: Literal["alternate", "grid"] = "alternate"
    mode: Literal["auto", "output", "residual"] = "auto"
    alpha: float | None = None
    utility: str = "builtin/answers"
    utility_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        choices: dict[str, tuple[str, Sequence[str]]] = {
            "stage": (self.stage, ("a", "b")),
            "angle": (self.angle, ("angle_of_mean", "mean_of_angles")),
            "search": (self.search, tuple(SEARCHES)),
            "mode": (self.mode, ("auto", "output", "residual")),
        }
        for setting, (value, known) in choices.items():
            if value not in known:
                raise UsageError(f"There is no {setting} {value!r}; use {' or '.join(known)}.")
        if self.alpha is not None and not 1 < self.alpha < math.inf:
            raise UsageError(f"Layers cannot be scaled up by {self.alpha}; give an alpha above 1, such as 1.1.")
        if not 0 <= self.utility_fraction < 1:
            raise UsageError(f"The utility fraction is {self.utility_fraction}; give a share in [0, 1).")

    def score(self, task: Task) -> UnitsFound:
        """Score every layer and choose a window of them.

        The score is by how much a layer widens the gap in stage a, and the share of the windows on the plateau that
        hold it in stage b. Without a clear gap, stage a chooses no layer.

        Raises:
            PromptError: Stage b has no gap to start from.
            ModelError: Contributions to the residual stream are asked for and cannot be told.
        """
        groups, missing = layer_groups(task.lm)
        layers = [group.layer for group in groups]
        curve, notes = self._curve(task)
        notes |= {"layers_left_out": missing} if missing else {}
        scores, window = curve.increments(), curve.first_guess() if curve.is_clear() else UNSCALED
        measured, alpha = self._measured(task), self.alpha or PLAIN_ALPHA
        if self.stage == "b":
            if window == UNSCALED:
                raise PromptError(f"{notes['no_gap']}, so there is no window to start from; use other or more prompts.")
            mode, changes = way_of_scaling(measured, window, alpha, self.mode)
            found = most_refusing(measured, window, mode, self.alpha, self.search, task.seed)
            alpha, window, scores = found.alpha, found.window, found.shares
            notes |= {**changes, **found.notes}
        chosen = [layer for layer in layers if layer in range(*window)]
        if self.utility_fraction:
            chosen, left_out = self._without_utility(measured, chosen, layers, alpha)
            notes |= left_out
        return UnitsFound(
            groups,
            [scores[layer : layer + 1].clone() for layer in layers],
            [torch.arange(1) if layer in chosen else torch.arange(0) for layer in layers],
            notes,
        )

    def _curve(self, task: Task) -> tuple[GapCurve, dict[str, Any]]:
        normal = load_prompts(self.normal)
        states = [last_states(task.lm, prompts, task.batch_size) for prompts in (normal, task.prompts)]
        curve = gap_curve(states[0], states[1], self.angle, task.seed)
        notes: dict[str, Any] = {
            "depends_on": "stage_a" if self.stage == "a" else "stage_a+b",
            "prompts_used": len(task.prompts),
            "normal_used": len(normal),
            "normal_hash": normal.hash,
            "gap": _rounded(curve.gap),
            "gap_low": _rounded(curve.low),
            "gap_high": _rounded(curve.high),
        }
        if curve.is_clear():
            return curve, notes | {"first_guess": list(curve.first_guess())}
        top = int(curve.gap.argmax())
        sentence = (
            f"No gap: its largest value, {curve.gap[top]:.3g} degrees after layer {top}, is not above two standard "
            f"errors of {curve.error[top]:.3g}"
        )
        return curve, notes | {"no_gap": sentence}

    def _measured(self, task: Task) -> OverRejection:
        return OverRejection(
            task.lm,
            load_prompts(self.benign),
            load_prompts(self.utility),
            get_judge(self.judge),
            self.max_new_tokens,
            task.batch_size,
            task.checkpoint,
        )

    def _without_utility(
        self, measured: OverRejection, window: list[int], layers: list[int], alpha: float
    ) -> tuple[list[int], dict[str, Any]]:
        """The window without the layers whose scaling costs most utility; it may have holes."""
        count = math.floor(exact_fraction(self.utility_fraction) * len(layers))
        if count == 0:
            raise UsageError(
                f"A utility fraction of {self.utility_fraction} of {len(layers)} layers is none; give a larger one."
            )
        plain = measured.utility_loss(UNSCALED, 1, "residual")
        rises = {layer: measured.utility_loss(Window(layer, layer + 1), alpha, "residual") - plain for layer in layers}
        needed = sorted(layers, key=lambda layer: -rises[layer])[:count]
        kept = [layer for layer in window if layer not in needed]
        return kept, {
            "utility_hash": measured.utility.hash,
            "utility_rise": [[layer, round(rise, DIGITS)] for layer, rise in rises.items()],
            "utility_layers": sorted(needed),
            "hull": [kept[0], kept[-1] + 1] if kept else None,
        }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
