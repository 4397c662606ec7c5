"""Gather the artefacts of a run directory; parts that do not exist are left out and named."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ballast.errors import RunError
from ballast.report.schema import (
    Artefact,
    Comparison,
    Completion,
    Harden,
    PatchInfo,
    RegionInfo,
    Run,
    Summary,
    TrainingRow,
)
from ballast.runs import read_json, sha256_file

Kind = TypeVar("Kind", bound=Artefact)

# The files whose identity a reader may want to check, in the order in which they are made.
LISTED_FILES = (
    "before/summary.json",
    "region.safetensors",
    "region.json",
    "harden.jsonl",
    "harden.json",
    "patch.safetensors",
    "patch.json",
    "after/summary.json",
    "summary.json",
    "comparison.json",
)


@dataclass(frozen=True)
class ListedFile:
    """A file of the run with its size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Stage:
    """One measurement: its folder and what it found."""

    folder: Path
    summary: Summary


@dataclass(frozen=True)
class Artefacts:
    """Everything a run directory holds that the report shows; None or empty where the run has no such part."""

    folder: Path
    run: Run | None
    measured: Stage | None
    before: Stage | None
    after: Stage | None
    comparison: Comparison | None
    region: RegionInfo | None
    patch: PatchInfo | None
    harden: Harden | None
    training: tuple[TrainingRow, ...]
    files: tuple[ListedFile, ...]
    missing: tuple[str, ...]

    @property
    def stages(self) -> dict[str, Stage]:
        """The measurements that exist, by the word for their place in the run."""
        named = {"measured": self.measured, "before": self.before, "after": self.after}
        return {name: stage for name, stage in named.items() if stage is not None}


def gather(folder: Path) -> Artefacts:
    """Read what a run directory holds.

    Args:
        folder: A directory written by any command.

    Raises:
        RunError: The folder does not exist, holds nothing to report on, or holds a damaged artefact.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the --out folder of an earlier command.")
    comparison = _optional(folder / "comparison.json", Comparison)
    stages = {name: _stage(folder, name, comparison) for name in ("before", "after")}
    found = Artefacts(
        folder=folder,
        run=_optional(folder / "run.json", Run),
        measured=_open_stage(folder),
        before=stages["before"],
        after=stages["after"],
        comparison=comparison,
        region=_optional(folder / "region.json", RegionInfo),
        patch=_optional(folder / "patch.json", PatchInfo),
        harden=_optional(folder / "harden.json", Harden),
        training=tuple(_lines(folder / "harden.jsonl", TrainingRow)),
        files=tuple(_listed(folder, name) for name in LISTED_FILES if (folder / name).is_file()),
        missing=tuple(name for name in ("run.json", *LISTED_FILES) if not (folder / name).is_file()),
    )
    if not (found.stages or comparison or found.region or found.patch or found.harden or found.training):
        raise RunError(
            f"{folder} holds nothing to report on; run `ballast measure`, `locate` or `harden` into it first."
        )
    return found


def read_completions(stage: Stage, set_name: str) -> dict[str, Completion]:
    """The answers of one prompt set by prompt id; empty if they were not kept."""
    folder = stage.folder / "completions"
    files = sorted(folder.rglob("*.jsonl"))
    wanted = _plain(set_name)
    for file in files:
        if _plain(file.relative_to(folder).with_suffix("").as_posix()) == wanted:
            return {row.id: row for row in _lines(file, Completion)}
    return {}


def _plain(name: str) -> str:
    """A set name without what a file name may have replaced: slashes, spaces, punctuation."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _stage(folder: Path, name: str, comparison: Comparison | None) -> Stage | None:
    """The stage inside the run, or else where the comparison says it was read from: a path from here or from there."""
    stage = _open_stage(folder / name)
    if stage is None and comparison is not None:
        named = Path(getattr(comparison, name))
        stage = _open_stage(folder / named) or _open_stage(named)
    return stage


def _open_stage(folder: Path) -> Stage | None:
    summary = _optional(folder / "summary.json", Summary)
    return None if summary is None else Stage(folder, summary)


def _optional(path: Path, kind: type[Kind]) -> Kind | None:
    return _parse(path, kind, read_json(path)) if path.is_file() else None


def _lines(path: Path, kind: type[Kind]) -> list[Kind]:
    """Rows of a JSON-lines file; an unfinished last line is skipped, not cut off, since a run may be writing it."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise RunError(f"{path} line {number} is damaged; delete the file and run again.") from error
        rows.append(_parse(path, kind, value, f" line {number}"))
    return rows


def _parse(path: Path, kind: type[Kind], value: Any, place: str = "") -> Kind:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "content"
        raise RunError(
            f"{path}{place}: {field}: {first['msg']}; make it again with the command that wrote it."
        ) from error


def _listed(folder: Path, name: str) -> ListedFile:
    path = folder / name
    return ListedFile(name, path.stat().st_size, sha256_file(path))
