"""Files that the settings of a method name: their content decides a region as well as their names do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from ballast.locate import Method
from ballast.prompts import available_sets
from ballast.runs import sha256_file


def named_files(kind: type[Method], settings: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the file, the folder or the prompt set that a setting names, by the setting.

    Args:
        kind: The method; a setting with a fixed choice of words names nothing.
        settings: Its settings; values other than text name nothing.
    """
    sets, hints = available_sets(), get_type_hints(kind)
    found = {}
    for setting, value in settings.items():
        if isinstance(value, str) and value and get_origin(hints[setting]) is not Literal:
            path = sets.get(value, Path(value))
            if path.is_file():
                found[setting] = sha256_file(path)
            elif path.is_dir():
                found[setting] = _sha256_folder(path)
    return found


def _sha256_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\n{sha256_file(path)}\n".encode())
    return digest.hexdigest()
