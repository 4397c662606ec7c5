"""Measure what a model does, and compare two measurements."""

from ballast.evaluate.compare import compare
from ballast.evaluate.comparison import Comparison
from ballast.evaluate.measure import measure
from ballast.evaluate.summary import Summary

__all__ = ["Comparison", "Summary", "compare", "measure"]
