"""Where Ballast keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`BALLAST_CACHE`, or `ballast` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`)."""
    chosen = os.environ.get("BALLAST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ballast"
