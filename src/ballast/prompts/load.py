"""Load a prompt set by name or from a file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from ballast.errors import PromptError, UsageError
from ballast.prompts.prompt_set import Prompt, PromptSet
from ballast.prompts.readers import HUB_PREFIX, READERS, read_file, read_hub
from ballast.runs import JsonLines

ATTACKS = ("identity_shift", "compliance")  # harmless rows on which a model loses its safety
UNSPLIT_KINDS = ("answers", "choices", *ATTACKS)  # for measuring only
BUILTIN_KINDS = ("harmful", "twins", "borderline", "ordinary", "refusals", *UNSPLIT_KINDS)
RESPONSES_TO = {"refusals": "harmful", "compliance": "twins"}  # files with nothing but responses
SPLITS = ("tune", "select", "test")

PromptSets = PromptSet | str | Path | Sequence[PromptSet | str | Path]


def load_prompts(spec: str | Path, *, limit: int | None = None, seed: int = 0) -> PromptSet:
    """Load a prompt set.

    Args:
        spec: One of
            `builtin/harmful`, `builtin/twins`, `builtin/ordinary`, with `/tune`, `/select` or `/test` for one split;
            `builtin/borderline`, harmless ones that sound alarming, with `/tune` or `/select`;
            `builtin/refusals`, the harmful prompts of the split tune with refusals as responses;
            `builtin/answers`, ordinary requests with reference answers;
            `builtin/choices`, multiple-choice questions;
            `builtin/identity_shift` and `builtin/compliance`, harmless rows for `ballast attack`;
            the name of a set in the folder that the variable `BALLAST_DATA` names, such as `advbench`;
            the path of a `.jsonl`, `.csv` or `.parquet` file with a field `prompt`;
            `hf:owner/name@COMMIT` or `hf:owner/name@COMMIT:SPLIT`, a hub dataset at a fixed revision.
        limit: Keep this many prompts, drawn with `seed`; `PromptSet.sample` draws at most so many.
        seed: Seed of that draw.

    Raises:
        PromptError: The set is unknown, empty or malformed; the message names the line or the nearest names.
        UsageError: The limit is below 1, or the set has fewer prompts.
    """
    text = str(spec)
    if text.startswith("builtin/"):
        found = _builtin(text)
    elif text.startswith(HUB_PREFIX):
        found = read_hub(text)
    elif Path(text).suffix in READERS:
        if not Path(text).is_file():
            raise PromptError(f"The prompt file {text} does not exist; check the path.")
        found = PromptSet(Path(text).stem, read_file(Path(text)))
    else:
        found = _named(text)
    if limit is None:
        return found
    if limit > len(found):
        raise UsageError(
            f"The prompt set {found.name} has {len(found)} prompts, fewer than the {limit} asked for; lower the limit "
            "or give a larger set."
        )
    return found.sample(limit, seed)


def as_prompt_set(given: PromptSet | str | Path) -> PromptSet:
    """A prompt set, loaded if it is named."""
    return given if isinstance(given, PromptSet) else load_prompts(given)


def as_prompt_sets(given: PromptSets) -> list[PromptSet]:
    """Prompt sets, loaded if they are named; a single one may stand for a list."""
    if isinstance(given, PromptSet | str | Path):
        return [as_prompt_set(given)]
    return [as_prompt_set(one) for one in given]


def answered(prompts: PromptSet) -> PromptSet:
    """The set itself, if every prompt brings a response.

    Raises:
        PromptError: One does not; the message names it.
    """
    for prompt in prompts:
        if not prompt.response:
            raise PromptError(
                f"{prompt.id} of {prompts.name} has no response, but utility is read from answers; let the model write "
                "them with `ballast prompts answer MODEL SET --harmless --out FILE.jsonl`, or use a set with responses "
                "(builtin/answers)."
            )
    return prompts


def available_sets() -> dict[str, Path]:
    """Every named set in the folder of `BALLAST_DATA` and its file; empty if the variable is not set.

    Raises:
        PromptError: Two files have the same name.
    """
    folder = os.environ.get("BALLAST_DATA")
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*")) if folder else ():
        if path.suffix in READERS:
            if path.stem in found:
                raise PromptError(f"{found[path.stem]} and {path} would be one set by name; rename one of them.")
            found[path.stem] = path
    return found


def builtin_file(name: str) -> Path:
    """A file of the built-in set that ships with the package."""
    return Path(str(files("ballast.prompts"))) / "builtin" / name


def _builtin(text: str) -> PromptSet:
    names = [f"builtin/{kind}" for kind in BUILTIN_KINDS]
    names += [f"builtin/{kind}/{split}" for kind in BUILTIN_KINDS if kind not in UNSPLIT_KINDS for split in SPLITS]
    if text not in names:
        raise PromptError(f"There is no set {text!r}; {_nearest(text, names)}")
    kind, _, split = text.removeprefix("builtin/").partition("/")
    asked = RESPONSES_TO.get(kind)
    prompts = _responses(kind, asked) if asked else read_file(builtin_file(f"{kind}.jsonl"))
    return PromptSet(text, tuple(prompt for prompt in prompts if not split or prompt.split == split))


def _responses(kind: str, asked: str) -> tuple[Prompt, ...]:
    """The prompts of another file, once per response that was written for them."""
    prompts = {prompt.id: prompt for prompt in read_file(builtin_file(f"{asked}.jsonl"))}
    rows = JsonLines(builtin_file(f"{kind}.jsonl")).rows
    return tuple(
        prompts[row["prompt_id"]].model_copy(update={"id": row["id"], "response": row["text"]}) for row in rows
    )


def _named(text: str) -> PromptSet:
    sets = available_sets()
    if text in sets:
        return PromptSet(text, read_file(sets[text]))
    known = [*sets, *(f"builtin/{kind}" for kind in BUILTIN_KINDS)]
    hint = "" if sets else " (named sets need the variable BALLAST_DATA to name their folder)"
    raise PromptError(f"There is no prompt set {text!r}{hint}; {_nearest(text, known)}")


def _nearest(text: str, names: list[str]) -> str:
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.4) or names[:3]
    return f"did you mean {', '.join(near)}?"
