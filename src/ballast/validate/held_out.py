"""Whether the prompts of a validation are new to the region."""

from __future__ import annotations

from collections.abc import Sequence

from ballast.errors import PromptError
from ballast.prompts import PromptSet, available_sets, load_prompts
from ballast.prompts.overlap import shared_prompts
from ballast.regions import PromptSource, Region


def check_held_out(
    region: Region, sets: Sequence[PromptSet], located_on: Sequence[PromptSet]
) -> tuple[bool, tuple[str, ...]]:
    """Refuse prompts that the region was located with, as far as these are known.

    A region names its prompts and keeps a hash of them, not their text; named sets are looked up.

    Args:
        region: The region; one made from others, such as a union, names no prompts.
        sets: Every set to validate on.
        located_on: Further sets that it was located on, for what it does not say itself.

    Returns:
        Whether all prompts it was located on are known, and the names of those sets that are not.

    Raises:
        PromptError: A prompt is in both.
    """
    source, known, unknown = region.metadata.prompts, list(located_on), []
    if source and source.hash not in {one.hash for one in known}:
        found = next((one for one in sets if one.hash == source.hash), None) or _looked_up(source, region.metadata.seed)
        known += [found] if found else []
        unknown += [] if found else [source.name]
    shared = shared_prompts(known, sets)
    if shared:
        raise PromptError(
            f"The region was located on {len(shared)} of the prompts ({shared[0][1]} is {shared[0][0]}); "
            "validate on prompts that it has not seen."
        )
    return bool(known) and not unknown, tuple(unknown)


def _looked_up(source: PromptSource, seed: int) -> PromptSet | None:
    """The set of that name, or as many prompts drawn from it, if its hash is the recorded one."""
    if not source.name.startswith("builtin/") and source.name not in available_sets():
        return None
    try:
        whole = load_prompts(source.name)
    except PromptError:  # a set of the user's own, named like a built-in one
        return None
    candidates = (whole, whole.sample(source.n, seed))
    return next((one for one in candidates if one.hash == source.hash), None)
