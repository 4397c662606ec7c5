"""A tiny checkpoint and prompts for the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.world import make_checkpoint, make_prompts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_prompts(tmp_path / "bad.jsonl", "make", 4)
