"""Ballast: find the weights that keep a language model safe; tune, patch and measure the model without losing them."""

from ballast.errors import BallastError
from ballast.evaluate import Comparison, Summary, compare, measure
from ballast.locate import METHODS, Scores, ceiling, convergence, locate, locate_all, overlap_report
from ballast.models import LanguageModel, open_model
from ballast.patches import Patch
from ballast.pipeline import demo
from ballast.prompts import Prompt, PromptSet, load_prompts
from ballast.regions import Refinement, Region, RegionFile, consensus, overlap, refine
from ballast.report import write_report
from ballast.study import StudyGrid, study
from ballast.tune import (
    AttackSettings,
    FinetuneSettings,
    HardenSettings,
    SafetyPreserving,
    fine_tuning_attack,
    finetune,
    harden,
    harden_over,
    merge_protected,
)
from ballast.validate import ValidateSettings, Validation, validate

__all__ = [
    "METHODS",
    "AttackSettings",
    "BallastError",
    "Comparison",
    "FinetuneSettings",
    "HardenSettings",
    "LanguageModel",
    "Patch",
    "Prompt",
    "PromptSet",
    "Refinement",
    "Region",
    "RegionFile",
    "SafetyPreserving",
    "Scores",
    "StudyGrid",
    "Summary",
    "ValidateSettings",
    "Validation",
    "ceiling",
    "compare",
    "consensus",
    "convergence",
    "demo",
    "fine_tuning_attack",
    "finetune",
    "harden",
    "harden_over",
    "load_prompts",
    "locate",
    "locate_all",
    "measure",
    "merge_protected",
    "open_model",
    "overlap",
    "overlap_report",
    "refine",
    "study",
    "validate",
    "write_report",
]
