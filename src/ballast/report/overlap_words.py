"""What an overlap says, and what it does not say, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from ballast.report import formats
from ballast.report.flips import cut
from ballast.report.overlap_schema import Overlap, Pair
from ballast.report.words import Finding
from ballast.validate.findings import LEVEL

LONGEST_NAME = 20
MOST_SENTENCES = 6  # pairs up to which each has a sentence of its own


def short_names(overlap: Overlap) -> list[str]:
    """The names of the regions without the folders and file names that all of them share."""
    names = [list(PurePosixPath(region.name.removesuffix(".safetensors")).parts) for region in overlap.regions]
    for end in (-1, 0):
        while all(len(name) > 1 for name in names) and len({name[end] for name in names}) == 1:
            for name in names:
                del name[end]
    return [cut("/".join(name), LONGEST_NAME) for name in names]


def pair_name(pair: Pair, names: Sequence[str]) -> str:
    """Both regions by number and name."""
    return " and ".join(f"{place + 1} {names[place]}" for place in (pair.first, pair.second))


def shared_prompts(pair: Pair) -> str:
    """How many prompts of a pair are near duplicates."""
    if pair.prompts is None:
        return "not known"
    first, second = (formats.integer(count) for count in pair.prompts.of)
    if pair.prompts.same_set:
        return f"all {first}, one set"
    return f"{formats.integer(pair.prompts.near_duplicates)} between {first} and {second}"


def heading(overlap: Overlap) -> dict[str, Any]:
    """Title, first sentences and how it was done."""
    count = len(overlap.regions)
    return {"title": f"Overlap of {count} regions", "opening": opening(overlap), "method": method(overlap)}


def method(overlap: Overlap) -> list[str]:
    """What the limits are, and what was located again."""
    said = [
        "IoU is the weights in both over the weights in either. Chance is what random regions with the same numbers in "
        f"every weight matrix share; p is from {formats.integer(overlap.pairs[0].draws)} shuffles within the matrices."
    ]
    if overlap.ceilings:
        one = overlap.ceilings[0]
        said.append(
            f"Each region was located again on {one.splits} random halvings of its prompts, {one.prompts} on each side."
        )
    return said


def opening(overlap: Overlap) -> list[str]:
    """The sentences that open the page."""
    models = ", ".join(dict.fromkeys(region.model for region in overlap.regions))
    first = f"Ballast compared {len(overlap.regions)} regions of {models}: how many of their weights are the same."
    if len(overlap.pairs) == 1:
        return [first, *_sentences(overlap.pairs[0])]
    least, most = (function(overlap.pairs, key=lambda pair: pair.iou) for function in (min, max))
    names = short_names(overlap)
    return [first, *_counts(overlap.pairs), _range(least, most, names), *_corrected_range(overlap.pairs)]


def findings(overlap: Overlap) -> list[Finding]:
    """One line per pair; none where there are too many to read."""
    if not 1 < len(overlap.pairs) <= MOST_SENTENCES:
        return []
    names = short_names(overlap)
    return [Finding(pair_name(pair, names), " ".join(_sentences(pair))) for pair in overlap.pairs]


def limits(overlap: Overlap) -> list[str]:
    """What may and may not be concluded from these numbers."""
    pairs = overlap.pairs
    between = sum(_shown(pair) and pair.iou <= pair.margin_chance for pair in pairs)
    said = [
        f"A p of at most {LEVEL:g} says that two regions are not independent of each other within weight matrices. It "
        "does not say that they are alike: with a million weights a tiny excess has a small p."
    ]
    if between:
        said.append(
            f"{_pairs(between)} {_are(between)} above chance and not above what the numbers per row and column give: "
            "the same rows and columns matter to both, which does not show that the same weights do."
        )
    if overlap.ceilings:
        said.append(
            "A corrected overlap of 0 is chance and of 1 is as alike as two halves of one prompt set. It orders pairs, "
            "but it is no share of common weights, and noise still moves it."
        )
        if not any(pair.corrected and pair.corrected.resamples > 1 for pair in pairs):
            said.append("No prompts were drawn again (--resamples), so no corrected overlap has an interval.")
    else:
        said.append(
            "No ceiling was measured, so a low overlap can come from different weights or from too few prompts; "
            "--ceiling MODEL tells them apart."
        )
    said += _about_prompts(pairs)
    said.append(
        "No overlap says that a region keeps the model safe: “ballast validate” disturbs a region and asks that."
    )
    return said


def _about_prompts(pairs: Sequence[Pair]) -> list[str]:
    unknown = sum(pair.prompts is None for pair in pairs)
    same = sum(pair.prompts is not None and pair.prompts.same_set for pair in pairs)
    near = sum(
        pair.prompts is not None and not pair.prompts.same_set and pair.prompts.near_duplicates > 0 for pair in pairs
    )
    said = []
    if same:
        said.append(f"{_pairs(same)} {_were(same)} located on one prompt set, and can be alike for that reason.")
    if near:
        said.append(
            f"The prompt sets of {_pairs(near).lower()} have near duplicates in common; "
            "shared prompts alone make regions alike."
        )
    if unknown:
        said.append(
            f"For {_pairs(unknown).lower()} it is not known whether prompts are shared; name the sets with --prompts."
        )
    if not (same or near or unknown):
        said.append("No near duplicates were found between the prompt sets; paraphrases are not looked for.")
    return said


def _counts(pairs: Sequence[Pair]) -> list[str]:
    """How many pairs are above which limit, by weights and by units."""
    shown = [pair for pair in pairs if _shown(pair)]
    above = sum(pair.iou > pair.margin_chance for pair in shown)
    tested = f"(p at most {LEVEL:g}, corrected for the number of pairs)"
    told = (
        f"Of {len(pairs)} pairs, {_number(len(shown))} can be shown to share more weights than chance within weight "
        f"matrices {tested}"
    )
    said = [
        f"{told}, and {_number(above)} of these more than their numbers per row and column give."
        if shown
        else f"{told}."
    ]
    units = [pair.units for pair in pairs if pair.units]
    if units:
        count = sum(one.p <= LEVEL and one.iou > one.chance for one in units)
        said.append(
            f"By {' or '.join(dict.fromkeys(f'{one.granularity}s' for one in units))}, {_number(count)} of "
            f"{len(units)} pairs can be shown to share more than chance (p at most {LEVEL:g}, not corrected)."
        )
    return said


def _range(least: Pair, most: Pair, names: Sequence[str]) -> str:
    return (
        f"IoU goes from {formats.percent(least.iou)} ({pair_name(least, names)}, chance "
        f"{formats.percent(least.chance)}) to {formats.percent(most.iou)} ({pair_name(most, names)}, chance "
        f"{formats.percent(most.chance)})."
    )


def _corrected_range(pairs: Sequence[Pair]) -> list[str]:
    measured = [pair.corrected for pair in pairs if pair.corrected]
    known = sorted(one.corrected for one in measured if one.corrected is not None)
    if not measured:
        return []
    if not known:
        return ["Corrected overlap is not identifiable for any pair: its ceiling is too near to chance."]
    told = "Corrected overlap, where 0 is chance and 1 is two halves of one prompt set, goes from "
    told += f"{formats.decimal(known[0], 2)} to {formats.decimal(known[-1], 2)}"
    left = len(measured) - len(known)
    return [f"{told}; for {left} of {len(measured)} pairs it is not identifiable." if left else f"{told}."]


def _sentences(pair: Pair) -> list[str]:
    """One pair in words: IoU beside its limits, then the same with noise taken out."""
    chance, margins, cap = (formats.percent(share) for share in (pair.chance, pair.margin_chance, pair.size_cap))
    p = f"p{formats.SPACE}{formats.p_value(pair.adjusted_p)}"
    first = (
        f"They share {formats.percent(pair.iou)} of the {formats.integer(pair.union)} weights that either holds (IoU); "
        f"chance is {chance}, by rows and columns {margins}, and {cap} is the most."
    )
    if not _shown(pair):
        second = f"More than chance is not shown ({p})."
    else:
        above = "and more than" if pair.iou > pair.margin_chance else "but not more than"
        second = f"That is more than chance ({p}) {above} the numbers per row and column give."
    return [first, second, *_unit_sentence(pair), *_corrected_sentence(pair)]


def _unit_sentence(pair: Pair) -> list[str]:
    units = pair.units
    if units is None:
        return []
    iou, chance, cap = (formats.percent(share) for share in (units.iou, units.chance, units.size_cap))
    p = f"p{formats.SPACE}{formats.p_value(units.p)}"
    return [
        f"By {units.granularity}s it is {iou} of {formats.integer(units.union)}; chance {chance}, at most {cap} ({p})."
    ]


def _corrected_sentence(pair: Pair) -> list[str]:
    found = pair.corrected
    if found is None:
        return []
    if found.corrected is None:
        return [
            f"Corrected overlap is not identifiable: the ceiling, {formats.percent(found.ceiling)}, "
            f"is too near to chance, {formats.percent(found.chance)}."
        ]
    interval = formats.bounds(found.low, found.high, digits=2, scale=1)
    return [f"Corrected overlap is {formats.decimal(found.corrected, 2)} {interval}".strip() + "."]


def _shown(pair: Pair) -> bool:
    return pair.adjusted_p <= LEVEL and pair.iou > pair.chance


def _number(count: int) -> str:
    return formats.integer(count) if count else "none"


def _pairs(count: int) -> str:
    return "One pair" if count == 1 else f"{count} pairs"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
