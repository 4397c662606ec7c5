"""Tune a small region of a model's weights."""

from ballast.tune.finetune import finetune
from ballast.tune.finetune_settings import FinetuneSettings
from ballast.tune.harden import harden
from ballast.tune.merge import merge_protected
from ballast.tune.safety_preserving import SafetyPreserving
from ballast.tune.settings import HardenSettings
from ballast.tune.sparse_adamw import SparseAdamW

__all__ = [
    "FinetuneSettings",
    "HardenSettings",
    "SafetyPreserving",
    "SparseAdamW",
    "finetune",
    "harden",
    "merge_protected",
]
