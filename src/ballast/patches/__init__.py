"""Sparse changes of a model's weights, exact in both directions."""

from ballast.patches.difference import PatchDifference
from ballast.patches.entries import Entries
from ballast.patches.export import export
from ballast.patches.header import Origin
from ballast.patches.patch import Patch, PatchInfo

__all__ = ["Entries", "Origin", "Patch", "PatchDifference", "PatchInfo", "export"]
