"""Read prompt rows from JSONL, CSV, Parquet and hub datasets; every fault names its file and line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from pydantic import ValidationError

from ballast.errors import PromptError
from ballast.prompts.prompt_set import Prompt, PromptSet

HUB_PREFIX = "hf:"
HUB_FORM = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{7,40})(?::(?P<split>\w+))?")
Row = tuple[str, dict[str, Any]]  # where it stands ("line 3"), its fields


def read_file(path: Path) -> tuple[Prompt, ...]:
    """Read all prompts of a `.jsonl`, `.csv` or `.parquet` file.

    Each row needs `prompt`; the other fields of `Prompt` are optional and further ones are ignored. `choices` is a list
    of strings, in CSV written as JSON.
    A row without id gets the file's name and its number.

    Raises:
        PromptError: The file cannot be read or a row is malformed; the message names the line.
    """
    try:
        return _prompts(READERS[path.suffix](path), str(path), path.stem)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise PromptError(f"Cannot read the prompt file {path}: {error}.") from error


def read_hub(spec: str) -> PromptSet:
    """Read a hub dataset at a fixed revision, `hf:owner/name@COMMIT[:SPLIT]` (split `train` if none is given).

    Raises:
        PromptError: No commit is given, the extra `hub` is not installed, or the dataset cannot be had.
    """
    form = HUB_FORM.fullmatch(spec)
    if form is None:
        raise PromptError(f"{spec} names no commit; write hf:owner/name@COMMIT or hf:owner/name@COMMIT:SPLIT.")
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise PromptError("Hub datasets need an extra package; run `pip install 'ballast-llm[hub]'`.") from error
    try:
        rows = load_dataset(form["name"], revision=form["revision"], split=form["split"] or "train")
    except (OSError, ValueError, DatasetsError) as error:
        raise PromptError(f"Cannot load {spec}: {' '.join(str(error).split())[:200]}.") from error
    numbered = ((f"row {number}", dict(row)) for number, row in enumerate(rows, start=1))
    return PromptSet(spec, _prompts(numbered, spec, form["name"].rpartition("/")[2]))


def _prompts(rows: Iterable[Row], source: str, stem: str) -> tuple[Prompt, ...]:
    found = []
    for number, (where, fields) in enumerate(rows):
        known = {key: value for key, value in fields.items() if key in Prompt.model_fields}
        if known.get("id") is None:
            known["id"] = f"{stem}-{number:05d}"
        try:
            found.append(Prompt.model_validate(known))
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(str(piece) for piece in fault["loc"])
            raise PromptError(f"{source} {where}: field {field!r}: {fault['msg'].lower()}; mend that row.") from error
    if not found:
        raise PromptError(f"{source} holds no prompts; give a file with at least one row.")
    return tuple(found)


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        fields = _json(line, f"{path} line {number}")
        if not isinstance(fields, dict):
            raise PromptError(
                f"{path} line {number} is not a JSON object; write one object with a field `prompt` a line."
            )
        yield f"line {number}", fields


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where} is not valid JSON ({error.msg}); mend that line.") from error


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            if "prompt" not in (reader.fieldnames or ("prompt",)):  # a file without any line is empty, not malformed
                raise PromptError(f"{path} has no column `prompt`; name the columns in its first line.")
            for fields in reader:
                where = f"line {reader.line_num}"
                if any(fields.pop(None, ())):
                    raise PromptError(f"{path} {where} has more fields than columns; quote texts that hold a comma.")
                row: dict[str, Any] = {key: value or None for key, value in fields.items()}
                if row.get("choices"):
                    row["choices"] = _json(row["choices"], f"{path} {where}: field 'choices'")
                yield where, row
        except csv.Error as error:
            raise PromptError(
                f"{path} line {reader.reader.line_num} is not valid CSV ({error}); mend that line."
            ) from error


def _parquet(path: Path) -> Iterator[Row]:
    for number, fields in enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1):
        yield f"row {number}", fields


READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
