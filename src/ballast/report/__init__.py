"""One self-contained page about a run directory, for a person to read."""

from ballast.report.page import write_report

__all__ = ["write_report"]
