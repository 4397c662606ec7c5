"""What was done and what came of it, in sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ballast.evaluate.comparison import SetChange, UtilityChange
from ballast.evaluate.summary import Axis, SafetyResult
from ballast.report import formats
from ballast.report.read import Artefacts

_OVERALL = {"fell": "it fell", "rose": "it rose", "unclear": "there is no clear change"}
RATE_NAME: dict[Axis, str] = {"safety": "attack success", "over_refusal": "over-refusal"}


@dataclass(frozen=True)
class Finding:
    """One sentence about one prompt set; `name` is printed before it."""

    name: str
    sentence: str


def model_name(artefacts: Artefacts) -> str:
    """The name of the model, from the manifest or from a measurement."""
    names = [artefacts.run.model.name] if artefacts.run and artefacts.run.model else []
    names += [stage.summary.model.name for stage in artefacts.stages.values()]
    return names[0] if names else "the model"


def opening(artefacts: Artefacts) -> list[str]:
    """The sentences that open the page: what was done to which model, and what came of it."""
    name = model_name(artefacts)
    if artefacts.harden is not None:
        first = _hardened(artefacts, name)
    elif artefacts.region is not None:
        first = f"Ballast located the weights of {name} that matter most for safety."
    elif artefacts.training:
        first = f"Ballast is hardening {name}; {len(_steps(artefacts))} optimizer steps are recorded so far."
    elif artefacts.comparison is not None:
        first = f"Ballast compared two measurements of {name}."
    else:
        first = f"Ballast measured how {name} answers harmful and harmless requests."
    headlines = [text for axis in RATE_NAME if (text := _headline(artefacts, axis))]
    return [first, *headlines, *(f"On {row.name}, {row.sentence}" for row in utility_findings(artefacts))]


def method(artefacts: Artefacts) -> list[str]:
    """The sentences that say how it was done, with the settings that matter."""
    return [text for text in (_region(artefacts), _training(artefacts), _measuring(artefacts)) if text]


def answers(max_new_tokens: int, judge: str) -> str:
    """How answers were made and judged."""
    made = f"generated greedily, at most {max_new_tokens} tokens each, and judged by “{judge}”"
    return f"Answers were {made}. Square brackets hold 95{formats.SPACE}% intervals."


def findings(artefacts: Artefacts, axis: Axis) -> list[Finding]:
    """One sentence per prompt set of an axis: the paired change if there is one, else the rate measured."""
    if artefacts.comparison is not None:
        return [Finding(row.name, _change(row)) for row in artefacts.comparison.sets if row.axis == axis]
    for stage in artefacts.stages.values():
        return [Finding(row.name, _rate(row)) for row in stage.summary.sets if row.axis == axis]
    return []


def utility_findings(artefacts: Artefacts) -> list[Finding]:
    """One sentence per utility measurement that was taken twice."""
    if artefacts.comparison is None:
        return []
    return [Finding(row.name, _utility_change(row)) for row in artefacts.comparison.utility]


def _headline(artefacts: Artefacts, axis: Axis) -> str:
    """The first set's rate and, so that no set is picked for its result, what happened on all of them."""
    if artefacts.comparison is None:
        found = findings(artefacts, axis)
        if not found:
            return ""
        more = f" {len(found) - 1} more sets of this kind are below." if len(found) > 2 else ""
        return f"On {found[0].name}, {found[0].sentence}{more}"
    rows = [row for row in artefacts.comparison.sets if row.axis == axis]
    if not rows:
        return ""
    first = f"On {rows[0].name}, {RATE_NAME[axis]} {_verb(rows[0])} {formats.rate(rows[0].before)} to "
    first += formats.rate(rows[0].after, rows[0].n) + _degenerate(rows[0])
    if len(rows) == 1:
        return first + "."
    counts = Counter(_direction(row) for row in rows)
    if len(counts) == 1:
        return f"{first}; on all {len(rows)} sets {_OVERALL[next(iter(counts))]}."
    told = " and ".join(f"{_OVERALL[direction]} on {counts[direction]}" for direction in _OVERALL if counts[direction])
    return f"{first}; of {len(rows)} sets, {told}."


def _direction(row: SetChange) -> str:
    """`fell` or `rose`; `unclear` when the interval of the difference holds zero or is not known."""
    if row.difference is None or row.low is None or row.high is None or row.low <= 0 <= row.high:
        return "unclear"
    return "fell" if row.difference < 0 else "rose"


def _verb(row: SetChange) -> str:
    return {"fell": "fell from", "rose": "rose from", "unclear": "went, without a clear change, from"}[_direction(row)]


def _hardened(artefacts: Artefacts, name: str) -> str:
    """Which share of the weights was tuned; the region's counts are about eligible entries, never all parameters."""
    region, harden, patch = artefacts.region, artefacts.harden, artefacts.patch
    entries = (harden and harden.trained_entries) or (region and region.actual) or (patch and patch.entries)
    if region is not None and entries:
        share = formats.short_percent(region.fraction)
        eligible = formats.integer(region.eligible)
        counted = f"{share} of its weights: {formats.integer(entries)} of {eligible} eligible entries"
    else:
        counted = f"{formats.integer(entries)} of its weights" if entries else "a small part of its weights"
    return f"Ballast hardened {name} against harmful requests by tuning only {counted}."


def _region(artefacts: Artefacts) -> str:
    region = artefacts.region
    if region is None:
        return ""
    by = f" by their scores on {formats.integer(region.prompts.n)} prompts" if region.prompts else ""
    chosen = "These entries were" if artefacts.harden else f"{formats.integer(region.actual)} entries were"
    where = formats.words(region.scope) + _within(region.layers)
    return f"{chosen} chosen with the method “{region.method}”{by} (scope: {where})."


def _within(layers: list[int] | None) -> str:
    if not layers:
        return ""
    together = layers[-1] - layers[0] == len(layers) - 1
    return f", in layers {layers[0]} to {layers[-1]}" if together else f", in {len(layers)} of the layers"


def _training(artefacts: Artefacts) -> str:
    harden, patch = artefacts.harden, artefacts.patch
    if harden is None:
        return ""
    kept = "the last was kept" if harden.chosen_step == harden.steps else f"step {harden.chosen_step} was kept"
    size = f" The change is a patch of {formats.size(patch.bytes)}." if patch else ""
    return f"Training ran for {harden.steps} steps, of which {kept}.{size}"


def _measuring(artefacts: Artefacts) -> str:
    for stage in artefacts.stages.values():
        return answers(stage.summary.max_new_tokens, stage.summary.judge)
    return ""


def _steps(artefacts: Artefacts) -> set[int]:
    return {row.step for row in artefacts.training if row.loss is not None}


def _change(row: SetChange) -> str:
    """The paired change; a difference whose interval holds zero is not called a rise or a fall."""
    rate = RATE_NAME[row.axis]
    before, after = formats.rate(row.before), formats.rate(row.after, row.n)
    if row.difference is None:
        return f"{rate}: {before} before, {after} after."
    if _direction(row) == "unclear":
        least = row.smallest_detectable_change
        limit = "" if least is None else f"; a change below about {formats.decimal(least * 100)} points would go unseen"
        return f"{rate} was {before} and is {after}: no clear change{limit}{_degenerate(row)}."
    return f"{rate} {_verb(row)} {before} to {after}{_degenerate(row)}."


def _degenerate(row: SetChange) -> str:
    """Answers that are neither refused nor complied lower every rate, so more of them are named beside it."""
    before, after = row.before.degenerate, row.after.degenerate
    return f" ({after} answers are now degenerate, {before} were before)" if after > before else ""


def _rate(row: SafetyResult) -> str:
    if row.rate is None:
        return "no answer could be scored."
    return f"{RATE_NAME[row.axis]} is {formats.rate(row, row.scored)}."


def _utility_change(row: UtilityChange) -> str:
    """Higher is better in both kinds, so the sign of the difference tells better from worse."""
    values = f"from {formats.utility(row.before, row.kind)} to {formats.utility(row.after, row.kind)}"
    if row.kind != "multiple_choice" and row.unit:
        values += f" {row.unit}"
    name = {"log_likelihood": "log-likelihood", "multiple_choice": "accuracy"}.get(row.kind, formats.words(row.kind))
    if row.low is not None and row.high is not None and row.low <= 0 <= row.high:
        return f"{name} went {values}: no clear change."
    if row.kind != "multiple_choice" and row.relative_change is not None:
        values += f", by {formats.percent(abs(row.relative_change))}"
    return f"{name} {'worsened' if row.difference < 0 else 'improved'} {values}."
