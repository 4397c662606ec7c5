"""Run directories: a manifest, atomic files, and work that continues where it stopped."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ballast.errors import RunError

REPORTED_VERSIONS = ("ballast-llm", "torch", "transformers", "safetensors", "numpy", "scipy")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; at the end of the block it takes the place of `path`, whole or not at all.

    Args:
        path: Destination; missing parent folders are made.

    Raises:
        RunError: The folder cannot be written, for example because the disk is full.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors writes files that only their owner may read, whatever the umask
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"Cannot write {path} ({reason}); free some disk space or choose another folder.") from error
    finally:
        with suppress(OSError):  # the folder may be what failed
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, see `write_bytes`; NaN and infinity are refused by a ValueError."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file atomically, see `replacing`; contiguous CPU tensors are not copied."""
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunError: The file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; check the folder or run the command that makes it.") from error
    except OSError as error:
        raise RunError(f"Cannot read {path} ({error.strerror}); check the path and its permissions.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not valid JSON ({error}); delete it and run the command again.") from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class JsonLines:
    """An append-only file of JSON rows that survives being cut off at any byte.

    Opening drops a last line that was not finished. `append` returns after the rows are on the disk.
    """

    def __init__(self, path: Path) -> None:
        """Open or prepare `path`; a torn last line is cut off.

        Raises:
            RunError: A line in the middle is damaged, or the file cannot be read or written.
        """
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if not path.exists():
            return
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunError(f"Cannot read {path} ({error.strerror}); check the path and its permissions.") from error
        kept = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(kept.splitlines(), start=1):
            self.rows.append(self._row(line, number))
        if len(kept) < len(data):
            write_bytes(path, kept)

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                return row
        raise RunError(f"{self.path} line {number} is damaged; delete the file and run again.")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop all rows that are not wanted, in the file too."""
        kept = [row for row in self.rows if wanted(row)]
        if len(kept) < len(self.rows):
            write_text(self.path, self.text(kept))
            self.rows = kept

    @staticmethod
    def text(rows: Iterable[Mapping[str, Any]]) -> str:
        """Rows as lines of JSON; NaN and infinity are refused by a ValueError."""
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add rows and wait until they are on the disk.

        Raises:
            RunError: The file cannot be written.
        """
        text = self.text(rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise RunError(
                f"Cannot write {self.path} ({error.strerror}); free some disk space and run again."
            ) from error
        self.rows.extend(rows)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in REPORTED_VERSIONS:
        found[package] = importlib.metadata.version(package)
    return found


class RunDirectory:
    """A folder with `run.json`, in which the same command continues and another one is refused."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Use `RunDirectory.open`; this only holds what it found."""
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path, command: str, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> RunDirectory:
        """Start a run in `path`, or continue the run that is there.

        Args:
            path: The folder; made if missing.
            command: The verb, such as `harden`.
            settings: Everything that decides the result; must be JSON.
            inputs: Identities of what is read: model, prompt sets (name, hash, n), files. Part of the comparison too.

        Raises:
            RunError: The folder holds a run with another command, settings or inputs; the message lists what differs.
        """
        manifest_path = path / "run.json"
        wanted = json.loads(json.dumps({"command": command, "settings": settings, **inputs}))
        if manifest_path.exists():
            manifest = _read_manifest(manifest_path)
            differing = list(_differences(wanted, {key: manifest.get(key) for key in wanted}))
            if differing:
                more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
                shown = "; ".join(differing[:3]) + more
                raise RunError(
                    f"{path} holds a run with other settings ({shown}); use another --out folder or delete it."
                )
            return cls(path, manifest)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        run = cls(path, {**wanted, "versions": versions(), "state": "running", "created": now, "steps": {}})
        run.save()
        return run

    @staticmethod
    def state_of(path: Path) -> str | None:
        """`running` or `done`; None if `path` holds no run."""
        manifest = path / "run.json"
        return str(_read_manifest(manifest).get("state")) if manifest.exists() else None

    def save(self) -> None:
        """Write `run.json` atomically."""
        write_json(self.path / "run.json", self.manifest)

    def is_done(self, step: str) -> bool:
        """Whether `step` was finished, by this call or an earlier one."""
        return bool(self.manifest["steps"].get(step, {}).get("state") == "done")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Mark `name` done, with its seconds, when the block ends without an error."""
        start = time.monotonic()
        yield
        self.manifest["steps"][name] = {"state": "done", "seconds": round(time.monotonic() - start, 2)}
        self.save()

    def finish(self) -> None:
        """Mark the whole run done."""
        self.manifest["state"] = "done"
        self.save()


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("steps"), dict):
        raise RunError(f"{path} is not the manifest of a run; delete it or choose another folder.")
    return manifest


def _differences(wanted: Any, found: Any, at: str = "") -> Iterator[str]:
    """Name each leaf at which two JSON values differ, as `settings.fraction: 0.02 now, 0.01 there`."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted(wanted.keys() | found.keys()):
            yield from _differences(wanted.get(key), found.get(key), f"{at}.{key}" if at else key)
    elif wanted != found and isinstance(found, dict):
        yield f"{at}: only there"
    elif wanted != found and isinstance(wanted, dict):
        yield f"{at}: only now"
    elif wanted != found:
        yield f"{at}: {json.dumps(wanted)} now, {json.dumps(found)} there"
