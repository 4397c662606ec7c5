"""Causal validation of a region: what happens to refusals when its weights are disturbed, or brought elsewhere.

A room of its own: it needs regions and measurements, and neither of those rooms knows the other.
"""

from ballast.validate.records import DoseEffect, Finding, Validation
from ballast.validate.settings import ValidateSettings
from ballast.validate.validate import validate

__all__ = ["DoseEffect", "Finding", "ValidateSettings", "Validation", "validate"]
