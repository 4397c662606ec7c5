"""Tune a small region of a model's weights."""

from ballast.tune.anchor import Anchor
from ballast.tune.attack import AttackStep, fine_tuning_attack
from ballast.tune.attack_settings import AttackSettings
from ballast.tune.drifting import drifting
from ballast.tune.finetune import finetune
from ballast.tune.finetune_settings import FinetuneSettings
from ballast.tune.harden import harden
from ballast.tune.lora import LoraSettings
from ballast.tune.merge import merge_protected
from ballast.tune.safe_lora import merge_projected
from ballast.tune.safety_preserving import SafetyPreserving
from ballast.tune.settings import HardenSettings
from ballast.tune.sparse_adamw import SparseAdamW
from ballast.tune.surgery import GradientSurgery
from ballast.tune.sweep import harden_over

__all__ = [
    "Anchor",
    "AttackSettings",
    "AttackStep",
    "FinetuneSettings",
    "GradientSurgery",
    "HardenSettings",
    "LoraSettings",
    "SafetyPreserving",
    "SparseAdamW",
    "drifting",
    "fine_tuning_attack",
    "finetune",
    "harden",
    "harden_over",
    "merge_projected",
    "merge_protected",
]
