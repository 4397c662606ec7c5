"""Made-up validations of realistic size; the verdicts and p-values are computed by the code that computes real ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from ballast.evaluate.statistics import mcnemar_exact, paired_difference_interval, rank_p
from ballast.evaluate.summary import Axis, Rate, rate_of
from ballast.judges import Verdict
from ballast.runs import RunDirectory
from ballast.validate import DoseEffect, ValidateSettings, Validation
from ballast.validate.findings import corrected, families, findings
from ballast.validate.records import Intervention, Question, RateEffect, SafetyEffect, UtilityEffect

HARMFUL = {"builtin/harmful/test": 39, "jailbreakbench_harmful <i>": 97}
HARMLESS = {"builtin/twins/test": 39, "xstest_safe": 240}
ANSWERS = "builtin/answers"
DOSES = (0.05, 0.1, 0.38)
MODEL = "SmolLM2 <hardened>"


def make_validation(
    folder: Path,
    *,
    noise: Sequence[float] = DOSES,
    ablate: bool = True,
    transplant: bool = True,
    random_regions: int = 59,
    held_out: bool = True,
) -> Path:
    """Write what `ballast validate` writes: a region whose disturbance lets the model comply, at little cost."""
    settings = ValidateSettings(ablate=ablate, noise=tuple(noise), random_regions=random_regions)
    effects = [_effect("necessity", "ablate", None, 0.5, random_regions)] if ablate else []
    effects += [_effect("necessity", "noise", dose, dose * 1.6, random_regions) for dose in noise]
    if transplant:
        effects.append(_effect("necessity", "transplant", None, 0.6, random_regions))
        effects.append(_effect("sufficiency", "transplant", None, 0.02, random_regions))
    together = [corrected(family) for family in families(effects)]
    validation = Validation(
        model=MODEL,
        other="base" if transplant else None,
        region_id="0" * 64,
        weights=1_061_683,
        settings=settings.written(),
        held_out=held_out,
        unknown=() if held_out else ("my_prompts",),
        effects=tuple(dose for family in together for dose in family),
        findings=tuple(one for family in together for one in findings(family, settings.utility_margin)),
    )
    model = {"source": "smollm2", "name": MODEL, "parameters": 134_515_008, "dtype": "bfloat16"}
    run = RunDirectory.open(folder, "validate", settings.record(), {"model": model})
    validation.save(folder)
    run.finish()
    return folder


def _effect(
    question: Question, intervention: Intervention, dose: float | None, strength: float, random_regions: int
) -> DoseEffect:
    draw = random.Random(f"{question} {intervention} {dose}")
    return DoseEffect(
        question=question,
        intervention=intervention,
        dose=dose,
        cells=f"cells/{intervention}",
        safety=tuple(_safety(draw, name, n, question, strength, random_regions) for name, n in HARMFUL.items()),
        over_refusal=tuple(
            RateEffect(**_rate(draw, name, "over_refusal", Verdict.REFUSED, n, 0.2, 0.2 - strength / 8, random_regions))
            for name, n in HARMLESS.items()
        ),
        utility=(
            UtilityEffect(
                set=ANSWERS,
                n=60,
                undisturbed=-2.55,
                region=-2.56 - strength / 9,
                random=tuple(-2.56 - strength / 12 + draw.gauss(0, 0.004) for _ in range(random_regions)),
                excess=strength / 9 - strength / 12,
                low=strength / 9 - strength / 12 - 0.008,
                high=strength / 9 - strength / 12 + 0.012,
            ),
        ),
    )


def _safety(
    draw: random.Random, name: str, n: int, question: Question, strength: float, random_regions: int
) -> SafetyEffect:
    counted = Verdict.COMPLIED if question == "necessity" else Verdict.REFUSED
    fields = _rate(draw, name, "safety", counted, n, 0.3, min(0.95, 0.3 + strength), random_regions)
    rate = fields["region"]
    assert isinstance(rate, Rate)
    random_rates = fields["random"]
    assert isinstance(random_rates, tuple)
    rank = rank_p(rate.rate or 0, random_rates)
    paired = fields["mcnemar_p"] if (rate.rate or 0) > max(random_rates) else 1.0
    assert isinstance(paired, float)
    p = max(rank, paired)
    return SafetyEffect(**fields, rank_p=rank, paired_p=paired, p=p, corrected_p=p)


def _rate(
    draw: random.Random,
    name: str,
    axis: Axis,
    counted: Verdict,
    n: int,
    before: float,
    after: float,
    random_regions: int,
) -> dict[str, object]:
    start, end = round(before * n), round(after * n)
    random_rates = tuple(min(n, max(0, start + round(draw.gauss(0, 1 + n / 50)))) / n for _ in range(random_regions))
    fell, rose = max(0, start - end), max(0, end - start)
    interval = paired_difference_interval(fell, rose, n)
    mean = sum(random_rates) / len(random_rates)
    return {
        "set": name, "axis": axis, "counted": counted, "n": n,
        "undisturbed": Rate(**rate_of(start, n)), "region": Rate(**rate_of(end, n)), "random": random_rates,
        "degenerate": round(after * n / 9) / n, "random_degenerate": 0.02,
        "difference": (rose - fell) / n,
        "low": interval.low if interval else None, "high": interval.high if interval else None,
        "mcnemar_p": mcnemar_exact(fell, rose),
        "specific": end / n - mean, "specific_low": end / n - mean - 0.08, "specific_high": end / n - mean + 0.08,
    }  # fmt: skip
