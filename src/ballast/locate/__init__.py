"""Find the weights that matter for safety: one engine, one file per identification method."""

from __future__ import annotations

from ballast.locate import (  # noqa: F401  importing a method registers it
    activation_contrast,
    controls,
    delta,
    differentiable_judge,
    esi,
    neurons,
    nlsr,
    refusal_direction,
    safe_lora,
    safety_layers,
    sahara,
    ships,
    snip,
    wanda,
)
from ballast.locate.halves import ceiling, convergence
from ballast.locate.overlap_report import overlap_report
from ballast.locate.registry import METHODS, Found, Method, Task, UnitsFound, get_method, register
from ballast.locate.relocate import Recipe
from ballast.locate.scores import Scores, WeightScores
from ballast.locate.scoring import locate, locate_all
from ballast.locate.unit_scores import UnitScores

__all__ = [
    "METHODS",
    "Found",
    "Method",
    "Recipe",
    "Scores",
    "Task",
    "UnitScores",
    "UnitsFound",
    "WeightScores",
    "ceiling",
    "convergence",
    "get_method",
    "locate",
    "locate_all",
    "overlap_report",
    "register",
]
