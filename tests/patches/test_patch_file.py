"""Patch files: what is in them, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from ballast.errors import PatchError, RunError
from ballast.models.fingerprint import fingerprints
from ballast.patches import Patch
from tests.patches.world import patch_of
from tests.zoo import tiny

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"

torch.set_num_threads(1)


class TestFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        patch_of(dtype=torch.bfloat16).save(tmp_path / "patch.safetensors")
        return tmp_path / "patch.safetensors"

    def rewrite(self, path: Path, changed: dict[str, torch.Tensor], header: dict[str, Any] | None = None) -> None:
        """The same file with some tensors or header fields replaced."""
        with safe_open(path, framework="pt") as opened:
            found = json.loads(opened.metadata()["ballast"])
        save_file({**load_file(path), **changed}, path, {"ballast": json.dumps({**found, **(header or {})})})

    def test_layout(self, path: Path) -> None:
        tensors = load_file(path)
        assert tensors[f"{DOWN}.indices"].dtype == torch.int32
        assert tensors[f"{DOWN}.values"].dtype == tensors[f"{DOWN}.previous"].dtype == torch.bfloat16
        with safe_open(path, framework="pt") as opened:
            header = json.loads(opened.metadata()["ballast"])
        assert header["base"] == {"source": "owner/tiny", "name": "tiny", "revision": None}
        assert header["tensors"][DOWN]["base"] == fingerprints(tiny("llama", dtype=torch.bfloat16))[DOWN]
        assert header["settings"] == {"lr": 0.1}

    def test_same_patch_same_bytes(self, path: Path, tmp_path: Path) -> None:
        Patch.load(path).save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()

    @pytest.mark.parametrize("keep", [0, 7, 100, -1])
    def test_truncated(self, path: Path, keep: int) -> None:
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(PatchError, match="is damaged"):
            Patch.load(path)

    def test_empty(self, path: Path) -> None:
        with safe_open(path, framework="pt") as opened:
            found = json.loads(opened.metadata()["ballast"])
        save_file({}, path, {"ballast": json.dumps({**found, "tensors": {}})})
        with pytest.raises(PatchError, match=r"do not fit \(no tensor\)"):
            Patch.load(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(PatchError, match="is not a file"):
            Patch.load(tmp_path / "none")

    def test_another_kind_of_file(self, path: Path) -> None:
        save_file({"a": torch.zeros(1)}, path)
        with pytest.raises(PatchError, match="not a patch"):
            Patch.load(path)

    @pytest.mark.parametrize(
        ("field", "change", "message"),
        [
            ("indices", lambda part: part.flip(0), "not sorted"),
            ("indices", lambda part: part + 5000, "outside its 1536"),
            ("indices", lambda part: part.long(), "int32"),
            ("values", lambda part: part * float("nan"), "not finite"),
            ("values", lambda part: part[1:].clone(), "unequal length"),
            ("previous", lambda part: part.float(), "bfloat16"),
        ],
    )
    def test_damaged_entries(self, path: Path, field: str, change: Any, message: str) -> None:
        key = f"{DOWN}.{field}"
        self.rewrite(path, {key: change(load_file(path)[key])})
        with pytest.raises(PatchError, match=message):
            Patch.load(path)

    def test_content_that_the_header_does_not_name(self, path: Path) -> None:
        self.rewrite(path, {"extra.indices": torch.zeros(1)})
        with pytest.raises(PatchError, match=r"do not fit \(extra\.indices\)"):
            Patch.load(path)

    @pytest.mark.parametrize("header", [{"format": 2}, {"tensors": {DOWN: {"shape": [1]}}}, {"surprise": 1}])
    def test_damaged_header(self, path: Path, header: dict[str, Any]) -> None:
        self.rewrite(path, {}, header)
        with pytest.raises(PatchError, match="damaged header"):
            Patch.load(path)

    @pytest.mark.parametrize(("field", "verb"), [("values", "apply"), ("previous", "revert")])
    def test_altered_values_are_found_before_any_write(self, path: Path, field: str, verb: str) -> None:
        good = Patch.load(path)
        key = f"{DOWN}.{field}"
        self.rewrite(path, {key: load_file(path)[key] + 1})
        altered, model = Patch.load(path), tiny("llama", dtype=torch.bfloat16)
        if verb == "revert":
            good.apply(model)
        before = fingerprints(model)
        with pytest.raises(PatchError, match=r"does not make .* what it promises"):
            getattr(altered, verb)(model)
        assert fingerprints(model) == before

    def test_unwritable_path(self, tmp_path: Path) -> None:
        (tmp_path / "folder" / "inside").mkdir(parents=True)
        with pytest.raises(RunError, match="Cannot write"):
            patch_of().save(tmp_path / "folder")
        assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
