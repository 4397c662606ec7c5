"""Tune a small region of a model's weights."""

from ballast.tune.harden import harden
from ballast.tune.settings import HardenSettings
from ballast.tune.sparse_adamw import SparseAdamW

__all__ = ["HardenSettings", "SparseAdamW", "harden"]
