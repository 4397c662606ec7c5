"""Sparse changes of a model's weights, exact in both directions."""

from ballast.patches.difference import Conflict, PatchDifference
from ballast.patches.entries import Entries
from ballast.patches.export import export
from ballast.patches.header import Origin
from ballast.patches.patch import Patch, PatchInfo
from ballast.patches.shira import AdapterInfo, export_adapter
from ballast.patches.stack import Stacked, stack

__all__ = [
    "AdapterInfo",
    "Conflict",
    "Entries",
    "Origin",
    "Patch",
    "PatchDifference",
    "PatchInfo",
    "Stacked",
    "export",
    "export_adapter",
    "stack",
]
