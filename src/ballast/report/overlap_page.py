"""What the page shows of an overlap, by the names that its template uses."""

from __future__ import annotations

from typing import Any

from ballast.report import overlap_figures, overlap_words
from ballast.report.overlap_schema import Overlap


def overlap_content(overlap: Overlap) -> dict[str, Any]:
    """Sentences, figures and names of regions and pairs; figures that the record has nothing for are None."""
    names = overlap_words.short_names(overlap)
    many = len(names) > 2
    return {
        "found": overlap,
        "names": names,
        "pair_names": [overlap_words.pair_name(pair, names) for pair in overlap.pairs],
        "shared": [overlap_words.shared_prompts(pair) for pair in overlap.pairs],
        "findings": overlap_words.findings(overlap),
        "limits": overlap_words.limits(overlap),
        "between": overlap_figures.between_figure(overlap, names),
        "iou": overlap_figures.iou_figure(overlap, names) if many else None,
        "corrected": overlap_figures.corrected_figure(overlap, names) if many else None,
        "details": [
            {
                "difference": overlap_figures.difference_figure(overlap, pair, names),
                "parts": overlap_figures.parts_figure(pair, names),
            }
            for pair in overlap.pairs
        ],
        "agreement": overlap_figures.agreement_figure(overlap),
        "convergence": overlap_figures.convergence_figure(overlap, names),
        "windows": overlap_figures.windows_figure(overlap, names),
    }
