"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ballast.errors import PatchError, RunError


@contextmanager
def new_folder(folder: Path, content: str) -> Iterator[Path]:
    """Give a folder to write into, beside the destination; at the end of the block it is renamed.

    Args:
        folder: Destination; must not exist or must be empty.
        content: What is written, for the error.

    Raises:
        PatchError: The destination is in use.
        RunError: It cannot be written.
    """
    require_unused(folder, content)
    partial = folder.parent / f".{folder.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left behind by an export that was killed
        partial.mkdir(parents=True)
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        partial.replace(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"Cannot write {folder} ({reason}); free some disk space or choose another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_unused(folder: Path, content: str) -> None:
    """Refuse a destination that is in use; to be asked before long work.

    Args:
        folder: Destination.
        content: What is to be written, for the error.

    Raises:
        PatchError: It is a file, or a folder that is not empty.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise PatchError(f"{folder} is not empty; give a new folder for the {content}.")
