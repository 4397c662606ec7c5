"""A tiny checkpoint and small prompt files, for whole commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.zoo import tiny, tiny_tokenizer

WORDS = ("kettle", "window", "garden", "bicycle", "ladder", "candle", "pillow", "button", "saddle", "hammer")


def make_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A tiny random Llama with its tokenizer."""
    tiny("llama", seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def make_prompts(path: Path, stem: str, n: int, **fields: Any) -> Path:
    """`n` different prompts, each with the given fields."""
    rows = [
        {"id": f"{stem}-{number}", "prompt": f"{stem} {WORDS[number % 10]} {number}?", "pair": None, **fields}
        for number in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ballast", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as a user runs it."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), check=False)


def left_behind(folder: Path) -> set[str]:
    """Every file under a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
