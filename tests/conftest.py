"""What every test runs under: no network, and a cache folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported, so before any test module


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests out of the user's cache, but for the real model: unpacking that takes time, and once is enough."""
    if request.node.get_closest_marker("model") is None:
        monkeypatch.setenv("BALLAST_CACHE", str(session_cache))
