"""Guards for the tests of the differentiable judge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.vocabularies import pair_tokenizer, save_guard
from tests.zoo import tiny_tokenizer


@pytest.fixture(scope="module", params=["same", "other"])
def guard_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard with the tokenizer of the target, and one that reads bytes."""
    tokenizer = {"same": pair_tokenizer, "other": tiny_tokenizer}[request.param]()
    return save_guard(tmp_path_factory.mktemp("guard"), tokenizer, dtype=torch.float64)


@pytest.fixture(scope="module")
def other_guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_guard(tmp_path_factory.mktemp("guard"))
