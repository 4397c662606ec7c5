"""Gather the artefacts of a run directory; parts that do not exist are left out and named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ballast.errors import RunError
from ballast.evaluate import Comparison
from ballast.evaluate.pairing import Measurement
from ballast.evaluate.summary import parse_record, read_record
from ballast.report.overlap_schema import Overlap
from ballast.report.schema import Artefact, Completion, Harden, PatchInfo, RegionInfo, Run, TrainingRow
from ballast.runs import sha256_file
from ballast.validate import Validation
from ballast.validate.records import VALIDATION

Kind = TypeVar("Kind", bound=Artefact)

# The files whose identity a reader may want to check, in the order in which they are made.
LISTED_FILES = (
    "before/summary.json",
    "summary.json",
    "region.safetensors",
    "region.json",
    "harden/harden.jsonl",
    "harden.jsonl",
    "harden/harden.json",
    "harden.json",
    "patch.safetensors",
    "patch.json",
    "after/summary.json",
    "comparison.json",
    "overlap.json",
    VALIDATION,
)


@dataclass(frozen=True)
class ListedFile:
    """A file of the run with its size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artefacts:
    """Everything a run directory holds that the report shows; None or empty where the run has no such part."""

    folder: Path
    run: Run | None
    measured: Measurement | None
    before: Measurement | None
    after: Measurement | None
    comparison: Comparison | None
    region: RegionInfo | None
    patch: PatchInfo | None
    harden: Harden | None
    overlap: Overlap | None
    validation: Validation | None
    training: tuple[TrainingRow, ...]
    files: tuple[ListedFile, ...]

    @property
    def stages(self) -> dict[str, Measurement]:
        """The measurements that exist, by the word for their place in the run."""
        named = {"measured": self.measured, "before": self.before, "after": self.after}
        return {name: stage for name, stage in named.items() if stage is not None}

    @property
    def missing(self) -> tuple[str, ...]:
        """The parts that are not there, in words: of a whole run, or of an overlap or a validation alone."""
        parts: dict[str, object] = {"manifest": self.run}
        if not (self.overlap or self.validation):
            parts |= {
                "measurement": self.stages,
                "comparison": self.comparison,
                "region": self.region,
                "training": self.harden,
                "patch": self.patch,
            }
        return tuple(name for name, part in parts.items() if not part)


def gather(folder: Path) -> Artefacts:
    """Read what a run directory holds.

    Args:
        folder: A directory written by any command.

    Raises:
        RunError: The folder does not exist, holds nothing to report on, or holds a damaged artefact.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the --out folder of an earlier command.")
    comparison = Comparison.load(folder) if (folder / "comparison.json").is_file() else None
    hardened = folder / "harden" if (folder / "harden").is_dir() else folder
    found = Artefacts(
        folder=folder,
        run=_optional(folder / "run.json", Run),
        measured=_measurement(folder),
        before=_measurement(folder / "before", folder / comparison.before if comparison else None),
        after=_measurement(folder / "after", folder / comparison.after if comparison else None),
        comparison=comparison,
        region=_optional(folder / "region.json", RegionInfo),
        patch=_optional(folder / "patch.json", PatchInfo),
        harden=_optional(hardened / "harden.json", Harden),
        overlap=_optional(folder / "overlap.json", Overlap),
        validation=Validation.load(folder) if (folder / VALIDATION).is_file() else None,
        training=tuple(_lines(hardened / "harden.jsonl", TrainingRow)),
        files=tuple(_listed(folder, name) for name in LISTED_FILES if (folder / name).is_file()),
    )
    shown = (found.stages, comparison, found.region, found.patch, found.harden, found.training, found.overlap)
    if not (any(shown) or found.validation):
        raise RunError(f"{folder} holds nothing to report on; give it as --out to a command first.")
    return found


def read_completions(stage: Measurement, set_name: str) -> dict[str, Completion]:
    """The answers of one prompt set by prompt id; empty if they were not kept."""
    slug = next((result.slug for result in stage.summary.sets if result.name == set_name), None)
    return {row.id: row for row in _lines(stage.folder / "completions" / f"{slug}.jsonl", Completion)}


def _measurement(*folders: Path | None) -> Measurement | None:
    """The measurement in the first of the folders that holds one."""
    for folder in folders:
        if folder is not None and (folder / "summary.json").is_file():
            return Measurement.open(folder)
    return None


def _optional(path: Path, kind: type[Kind]) -> Kind | None:
    return read_record(path, kind) if path.is_file() else None


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
        rows.append(parse_record(value, kind, f"{path} line {number}"))
    return rows


def _listed(folder: Path, name: str) -> ListedFile:
    path = folder / name
    return ListedFile(name, path.stat().st_size, sha256_file(path))
