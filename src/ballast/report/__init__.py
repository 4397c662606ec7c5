"""What a run directory holds, for people: one self-contained page, and the model card of a patch."""

from ballast.report.card import Card, patch_card
from ballast.report.page import write_report
from ballast.report.paper import write_figures

__all__ = ["Card", "patch_card", "write_figures", "write_report"]
