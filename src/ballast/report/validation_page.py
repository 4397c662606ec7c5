"""What the page shows of a validation, by the names that its template uses."""

from __future__ import annotations

from typing import Any

from ballast.report import validation_words
from ballast.report.validation_figures import family_figures
from ballast.validate import Validation
from ballast.validate.findings import RATE, families, label


def validation_content(validation: Validation) -> dict[str, Any]:
    """Sentences, and figures and tables for each intervention."""
    return {
        "found": validation,
        "verdicts": validation_words.verdicts(validation),
        "limits": validation_words.limits(validation),
        "families": [
            {
                "title": validation_words.family_title(doses[0]),
                "measure": RATE[doses[0].question],
                "figures": family_figures(validation, number, doses),
                "doses": [{"label": label(dose), "effect": dose} for dose in doses],
            }
            for number, doses in enumerate(families(validation.effects), start=1)
        ],
    }
