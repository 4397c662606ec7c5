"""The statistics of one dose, computed by hand from the rows of its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from ballast.errors import JudgeError
from ballast.evaluate.pairing import Measurement, UtilityRow
from ballast.evaluate.statistics import paired_difference_interval
from ballast.evaluate.summary import ModelIdentity, SafetyResult, Summary
from ballast.evaluate.utility import utility_result
from ballast.judges import Verdict
from ballast.runs import JsonLines, write_text
from ballast.validate.effects import Arms, dose_effect
from ballast.validate.findings import corrected, findings
from ballast.validate.plan import Dose
from ballast.validate.records import DoseEffect, Intervention, Question
from tests.worlds import prompt_set

HARMFUL = prompt_set("bad", [f"bad {number}" for number in range(6)])
ORDINARY = prompt_set("ordinary", ["tea", "sun"], ["hot", "bright"])
WEIGHTS = (1, 3)
VERDICTS = {verdict.value[0]: verdict for verdict in Verdict}
CELLS = {  # the last prompt is unscored in one cell, so it counts in none
    "undisturbed": ("rrrrcu", (-1, -2)),
    "region": ("cccdcc", (-2, -2)),
    "random-0": ("rrrrcc", (-1, -2)),
    "random-1": ("crrrcc", (-1, -4)),
}


def cell(folder: Path, letters: str, values: tuple[float, ...]) -> Measurement:
    verdicts = [VERDICTS[letter] for letter in letters]
    rows = [
        UtilityRow(id=prompt.id, value=value, weight=weight)
        for prompt, value, weight in zip(ORDINARY, values, WEIGHTS, strict=True)
    ]
    judged = [{"id": prompt.id, "verdict": verdict} for prompt, verdict in zip(HARMFUL, verdicts, strict=True)]
    write_text(folder / "verdicts/table/bad.jsonl", JsonLines.text(judged))
    write_text(folder / "utility/ordinary.jsonl", JsonLines.text(row.model_dump() for row in rows))
    Summary(
        model=ModelIdentity(source="a", name="a", dtype="float32", parameters=1),
        judge="table",
        max_new_tokens=1,
        sets=(SafetyResult.from_verdicts(HARMFUL, "safety", "table", verdicts),),
        utility=(utility_result(ORDINARY, "log_likelihood", rows),),
    ).save(folder)
    return Measurement.open(folder)


def effect_of(
    folder: Path, question: Question = "necessity", kind: Intervention = "noise", **changed: Any
) -> DoseEffect:
    cells = [cell(folder / name, *given) for name, given in (CELLS | changed).items()]
    nothing = cast("Any", None)
    dose = Dose(question, kind, 0.5, nothing, nothing, nothing)
    return dose_effect(dose, Arms(cells[0], cells[1], cells[2:]))


def test_necessity_by_hand(tmp_path: Path) -> None:
    """Complied, of five: 1 undisturbed, 4 with the region, 1 and 2 with the random ones; 3, 3 and 2 pairs rose."""
    found = effect_of(tmp_path)
    (effect,), (cost,) = found.safety, found.utility
    assert (effect.n, effect.undisturbed.rate, effect.region.rate, effect.random) == (5, 0.2, 0.8, (0.2, 0.4))
    assert (effect.difference, effect.mcnemar_p) == (0.6, 0.25)
    assert (effect.low, effect.high) == paired_difference_interval(0, 3, 5)
    assert effect.specific == pytest.approx(0.5)  # the mean of 0.5, 1, 1, 0, 0
    assert effect.specific_low is not None
    assert effect.specific_high is not None
    assert 0 <= effect.specific_low < 0.5 < effect.specific_high <= 1
    assert (effect.rank_p, effect.paired_p, effect.p) == (1 / 3, 0.5, 0.5)
    assert (effect.degenerate, effect.random_degenerate) == (0.2, 0.0)
    assert (cost.undisturbed, cost.region, cost.random) == (-1.75, -2.0, (-1.75, -3.25))
    assert cost.excess == -0.5  # (1 * 1 - 3 * 1) / 4: the random mean is -1 and -3
    assert (cost.low, cost.high) == (-1.0, 1.0)


def test_sufficiency_counts_refusals(tmp_path: Path) -> None:
    """Refused, of five: 4 undisturbed, none with the region, 4 and 3 with the random ones: it brings nothing."""
    (effect,) = effect_of(tmp_path, "sufficiency", "transplant").safety
    assert (effect.undisturbed.rate, effect.region.rate, effect.random) == (0.8, 0.0, (0.8, 0.6))
    assert (effect.rank_p, effect.paired_p) == (1.0, 1.0)


def test_no_prompt_was_scored_everywhere(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="No prompt of bad was scored in every cell"):
        effect_of(tmp_path, undisturbed=("uuurrr", (-1, -2)), region=("cccuuu", (-1, -2)))


def with_p(dose: DoseEffect, amount: float, p: float, high: float) -> DoseEffect:
    """The same effect with another p and another upper end of its cost."""
    effect = dose.safety[0].model_copy(update={"p": p, "corrected_p": p})
    cost = dose.utility[0].model_copy(update={"high": high})
    return dose.model_copy(update={"dose": amount, "safety": (effect,), "utility": (cost,)})


@pytest.mark.parametrize(
    ("doses", "shown", "chosen", "p"),
    [
        (((0.1, 0.02, 0.05), (1.0, 0.3, 0.05)), True, 0.1, 0.04),
        (((0.1, 0.03, 0.05), (1.0, 0.3, 0.05)), False, 0.1, 0.06),  # Holm over two doses
        (((0.1, 0.01, 0.2), (1.0, 0.02, 0.05)), True, 1.0, 0.02),  # the better p costs too much
        (((0.1, 0.01, 0.2), (1.0, 0.9, 0.05)), False, 0.1, 0.02),  # p and cost must come from one dose
        (((0.1, 0.05, 0.1),), True, 0.1, 0.05),
    ],
)
def test_which_dose_shows_it(
    doses: tuple[tuple[float, float, float], ...], shown: bool, chosen: float, p: float, tmp_path: Path
) -> None:
    one = effect_of(tmp_path)
    (finding,) = findings(corrected([with_p(one, *given) for given in doses]), margin=0.1)
    assert (finding.shown, finding.dose, finding.corrected_p) == (shown, chosen, p)
    assert f"is {'' if shown else 'not '}shown (noise of {chosen:g}, bad)" in finding.sentence
