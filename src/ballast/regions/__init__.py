"""Sets of weights: exact selection, the Region file, set algebra and overlap with its chance level."""

from ballast.regions.metadata import Coverage, ModelIdentity, PromptSource, RegionMetadata, Scored, Skipped
from ballast.regions.overlap import PairOverlap, overlap
from ballast.regions.refine import Refinement, refine
from ballast.regions.region import Region
from ballast.regions.selection import Selection, SelectionRecord, exact_fraction, select_top
from ballast.regions.threshold import Threshold, exact_threshold

__all__ = [
    "Coverage",
    "ModelIdentity",
    "PairOverlap",
    "PromptSource",
    "Refinement",
    "Region",
    "RegionMetadata",
    "Scored",
    "Selection",
    "SelectionRecord",
    "Skipped",
    "Threshold",
    "exact_fraction",
    "exact_threshold",
    "overlap",
    "refine",
    "select_top",
]
