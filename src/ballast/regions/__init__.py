"""Sets of weights: exact selection, the Region file, set algebra, overlap with its chance level, and planted truth."""

from ballast.regions.carried import carried
from ballast.regions.ceiling import Ceiling, CorrectedOverlap, Halves, ceiling_of, corrected_overlap
from ballast.regions.consensus import Agreement, agreement, consensus
from ballast.regions.metadata import Coverage, ModelIdentity, PromptSource, RegionMetadata, Scored, Skipped
from ballast.regions.overlap import AllOverlap, Overlaps, PairOverlap, overlap, overlaps
from ballast.regions.planted import neuron_group, random_mask, whole_parameters
from ballast.regions.recovery import Recovery, UnitRecovery, at_planted_size, ranked_recovery, recovery, unit_recovery
from ballast.regions.refine import Refinement, refine
from ballast.regions.region import Region
from ballast.regions.region_file import RegionFile
from ballast.regions.selection import Selection, SelectionRecord, exact_fraction, select_top
from ballast.regions.threshold import Threshold, exact_threshold
from ballast.regions.units import Units, units_of

__all__ = [
    "Agreement",
    "AllOverlap",
    "Ceiling",
    "CorrectedOverlap",
    "Coverage",
    "Halves",
    "ModelIdentity",
    "Overlaps",
    "PairOverlap",
    "PromptSource",
    "Recovery",
    "Refinement",
    "Region",
    "RegionFile",
    "RegionMetadata",
    "Scored",
    "Selection",
    "SelectionRecord",
    "Skipped",
    "Threshold",
    "UnitRecovery",
    "Units",
    "agreement",
    "at_planted_size",
    "carried",
    "ceiling_of",
    "consensus",
    "corrected_overlap",
    "exact_fraction",
    "exact_threshold",
    "neuron_group",
    "overlap",
    "overlaps",
    "random_mask",
    "ranked_recovery",
    "recovery",
    "refine",
    "select_top",
    "unit_recovery",
    "units_of",
    "whole_parameters",
]
