"""Open a checkpoint, name its parts, and tell one set of weights from another."""

from ballast.models.language_model import LanguageModel
from ballast.models.open import open_model
from ballast.models.parts import Part, PartMap, part_map
from ballast.models.sharding import sharded

__all__ = ["LanguageModel", "Part", "PartMap", "open_model", "part_map", "sharded"]
