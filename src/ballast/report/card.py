"""A model card for a patch: what it changes, what was measured, how to apply it, and what is not known."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCardData

from ballast.errors import RunError, UsageError
from ballast.evaluate.summary import SafetyResult, UtilityResult
from ballast.models.embedded import EMBEDDED
from ballast.models.fingerprint import combined
from ballast.models.open import HUB_ID
from ballast.patches import Patch
from ballast.report import formats, words
from ballast.report.markdown import Verbatim, render
from ballast.report.read import Artefacts, gather
from ballast.runs import sha256_file

PLACEHOLDER = "BASE"  # where a command needs the base and the card may not name a path of this machine


class Card(NamedTuple):
    """A card and what it lacks.

    Attributes:
        text: Markdown with the metadata that the Hugging Face hub reads.
        missing: What could not be said, as the card says it; empty if nothing.
    """

    text: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of measured numbers; empty without rows."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def patch_card(
    patch: Path | str, run: Path | str | None = None, *, license_id: str | None = None, base_model: str | None = None
) -> Card:
    """Write the card of a patch from the patch and from the run that made and measured it.

    Args:
        patch: The patch file.
        run: Folder with `before`, `after` and `comparison.json`, as `demo` writes it; None gives a card without
            numbers.
        license_id: The licence, as the hub names it.
        base_model: Hub id of the base; by default that of the patch, if it names one.

    Raises:
        PatchError: The patch cannot be read.
        RunError: The run cannot be read, or is about another patch or model.
        UsageError: `base_model` is not a hub id.
    """
    path, loaded = Path(patch), Patch.load(patch)
    if base_model is not None and not HUB_ID.fullmatch(base_model):
        raise UsageError(f"{base_model!r} is not a hub id; give owner/name.")
    artefacts = _artefacts(Path(run), loaded) if run is not None else None
    source = loaded.header.base.source
    named = HUB_ID.fullmatch(source) and not Path(source).exists()  # a relative path may look like an id
    hub_id = base_model or (source if named else None)
    opens_as = hub_id or (source if source in EMBEDDED else PLACEHOLDER)
    missing = tuple(_missing(artefacts, license_id, hub_id))
    body = render(
        "card.md.j2",
        info=loaded.info(),
        formats=formats,
        file=path.name,
        size=path.stat().st_size,
        sha256=sha256_file(path),
        revision=loaded.header.base.revision,
        sentences=[*words.opening(artefacts), *words.method(artefacts)] if artefacts else [],
        tables=[table for table in _tables(artefacts) if table.rows] if artefacts else [],
        base=loaded.header.base.name,
        base_of_tensors=combined({name: record.base for name, record in loaded.header.tensors.items()}),
        base_fingerprint=artefacts and artefacts.before and artefacts.before.summary.model.fingerprint,
        settings=formats.flatten(loaded.header.settings),
        placeholder=opens_as == PLACEHOLDER,
        shell=Verbatim(f"{opens_as} {shlex.quote(' '.join(path.name.split()))}"),
        python_base=Verbatim(json.dumps(opens_as)),
        python_file=Verbatim(json.dumps(" ".join(path.name.split()), ensure_ascii=False)),
        missing=missing,
    )
    metadata = ModelCardData(base_model=hub_id, license=license_id)
    front = f"---\n{metadata.to_yaml()}\n---\n\n" if hub_id or license_id else ""
    return Card(front + body, missing)


def _artefacts(run: Path, patch: Patch) -> Artefacts:
    """What a run holds, after making sure that it is not about something else."""
    found = gather(run)
    if found.run and found.run.command.startswith("finetune"):
        raise RunError(f"{run} fine-tuned a model, so its numbers are not those of a patch; give the run of the patch.")
    stored = run / "patch.safetensors"
    if stored.is_file() and Patch.load(stored).header.tensors != patch.header.tensors:
        raise RunError(f"{run} holds another patch; give the run that made this one.")
    for stage in found.stages.values():
        if stage.summary.model.parameters != patch.header.parameters:
            raise RunError(
                f"{stage.folder} measured a model of {stage.summary.model.parameters} weights and the patch is for one "
                f"of {patch.header.parameters}; give the run that measured this patch."
            )
    return found


def _missing(artefacts: Artefacts | None, license_id: str | None, hub_id: str | None) -> list[str]:
    found = []
    if license_id is None:
        found.append("No licence was given.")
    if hub_id is None:
        found.append("The base is not named by an id on the hub.")
    if artefacts is None:
        return [*found, "No run was given, so no measurement is shown."]
    if not (artefacts.folder / "patch.safetensors").is_file():
        found.append("The run does not hold this patch, so nothing but its author's word ties the numbers to it.")
    if artefacts.comparison is None:
        found.append("The two measurements were not compared prompt by prompt.")
    for stage in ("before", "after"):
        measured = getattr(artefacts, stage)
        if measured is None:
            found.append(f"The model was not measured {stage} the patch.")
            continue
        axes = {row.axis for row in measured.summary.sets}
        found += [
            f"Not measured {stage} the patch: {name}." for axis, name in words.RATE_NAME.items() if axis not in axes
        ]
        if not measured.summary.utility:
            found.append(f"Not measured {stage} the patch: utility.")
    return found


def _tables(artefacts: Artefacts) -> list[Table]:
    """The paired changes; without a comparison each measurement for itself."""
    if artefacts.comparison is None:
        stages = [(name, stage.summary) for name, stage in artefacts.stages.items() if name in ("before", "after")]
        return [
            Table(
                ("set", "rate", "when", "value [95 %]", "n"),
                [_rate(name, row) for name, of in stages for row in of.sets],
            ),
            Table(
                ("set", "unit", "when", "value [95 %]", "n"),
                [_utility(name, row) for name, of in stages for row in of.utility],
            ),
        ]
    rates = [
        (
            row.name,
            words.RATE_NAME[row.axis],
            formats.rate(row.before),
            formats.rate(row.after),
            f"{formats.difference(row.difference)} {formats.bounds(row.low, row.high)}",
            formats.p_value(row.mcnemar_p),
            formats.integer(row.n),
        )
        for row in artefacts.comparison.sets
    ]
    utility = [
        (
            use.name,
            use.unit,
            formats.utility(use.before, use.kind),
            formats.utility(use.after, use.kind),
            f"{formats.utility(use.difference, use.kind, sign=True)} "
            f"{formats.utility_bounds(use.low, use.high, use.kind)}",
            formats.integer(use.n),
        )
        for use in artefacts.comparison.utility
    ]
    return [
        Table(("set", "rate", "before [95 %]", "after [95 %]", "points [95 %]", "McNemar p", "n"), rates),
        Table(("set", "unit", "before", "after", "change [95 %]", "n"), utility),
    ]


def _rate(stage: str, row: SafetyResult) -> tuple[str, ...]:
    return row.name, words.RATE_NAME[row.axis], stage, formats.rate(row), formats.integer(row.scored)


def _utility(stage: str, row: UtilityResult) -> tuple[str, ...]:
    value = f"{formats.utility(row.value, row.kind)} {formats.utility_bounds(row.low, row.high, row.kind)}"
    return row.name, row.unit, stage, value, formats.integer(row.n)
