"""Where benchmarks write their results: small JSON with the commit and the settings that made them."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ballast.runs import versions, write_json

FOLDER = Path(__file__).parent / "results"


def commit() -> str:
    """The commit of the working tree, marked if files other than results differ from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    found = git("describe", "--always", "--abbrev=12")
    return f"{found}-dirty" if found and changed else found or "not committed"


def write_result(name: str, *, settings: dict[str, Any], results: Any) -> None:
    """Write `results/<name>.json`."""
    write_json(
        FOLDER / f"{name}.json",
        {
            "benchmark": name,
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
            "versions": versions(),
            "settings": settings,
            "results": results,
        },
    )
