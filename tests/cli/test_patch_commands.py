"""The commands that publish patches: what they print, what they write, how they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ballast import Patch, open_model, pipeline
from ballast.cli import main
from ballast.patches import Origin
from tests.cli.calls import printed, value, weights
from tests.e2e.world import make_checkpoint, make_prompts

NAME = "model.layers.0.mlp.down_proj.weight"


def make_patch(base: Path, path: Path, moved: dict[int, float], dtype: str = "auto") -> Path:
    """A patch file that adds the given numbers to entries of one tensor."""
    lm = open_model(base, dtype=dtype, device="cpu")
    flat = lm.model.get_parameter(NAME).detach().view(-1)
    previous = flat[list(moved)].clone()
    values = previous + previous.new_tensor(list(moved.values()))
    changes = {NAME: (flat.new_tensor(list(moved)).long(), values, previous)}
    Patch.from_values(changes, lm.model, base=Origin(source="owner/tiny", name="tiny")).save(path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code in (1, 2)
    return capsys.readouterr().err


@pytest.fixture
def patches(checkpoint: Path, tmp_path: Path) -> list[Path]:
    """Two patches of one base that set entry 3 to different values."""
    return [
        make_patch(checkpoint, tmp_path / "first.safetensors", {3: 1.0, 4: 1.0}),
        make_patch(checkpoint, tmp_path / "second.safetensors", {3: 3.0, 9: 1.0}),
    ]


class TestStack:
    def test_conflicts_are_shown_and_settled(
        self, checkpoint: Path, patches: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = value(capsys, "patch", "diff", *patches)
        assert found["conflicts"] == {NAME: {"entries": 1, "share": 1 / 3, "largest": pytest.approx(2)}}
        assert (found["shared"], found["same"], found["different"]) == (1, 0, 1)
        out = tmp_path / "both.safetensors"
        call = ["patch", "stack", checkpoint, *patches, "--out", out]
        assert "on_conflict last or sum" in refused(capsys, *call)
        assert not out.exists()
        made = value(capsys, *call, "--on-conflict", "last")
        assert (made["entries"], made["conflicts"]) == (3, found["conflicts"])
        both = Patch.load(out).entries[NAME]
        assert both.values[0] == Patch.load(patches[1]).entries[NAME].values[0]
        assert "exists" in refused(capsys, *call, "--on-conflict", "sum")

    def test_applied_and_reverted(
        self, checkpoint: Path, patches: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "both.safetensors"
        value(capsys, "patch", "stack", checkpoint, *patches, "--out", out, "--on-conflict", "sum")
        value(capsys, "patch", "apply", checkpoint, out, "--out", tmp_path / "applied")
        value(capsys, "patch", "revert", tmp_path / "applied", out, "--out", tmp_path / "reverted")
        assert weights(tmp_path / "applied") != weights(checkpoint) == weights(tmp_path / "reverted")

    def test_bad_input(
        self, checkpoint: Path, patches: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "both.safetensors"
        options = ("--out", out, "--on-conflict", "last")
        assert "at least two" in refused(capsys, "patch", "stack", checkpoint, patches[0], *options)
        other = make_checkpoint(tmp_path / "other", seed=4)
        assert "made for other values" in refused(capsys, "patch", "stack", other, *patches, *options)
        patches[1].write_bytes(patches[1].read_bytes()[:-1])
        assert "is damaged" in refused(capsys, "patch", "stack", checkpoint, *patches, *options)
        assert not out.exists()


class TestDtype:
    """A patch says in which dtype it applies; every command that applies one can open the model in it."""

    def test_of_the_patch(self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        first, second = (
            make_patch(checkpoint, tmp_path / f"{entry}.safetensors", {entry: 1.0}, "bfloat16") for entry in (3, 4)
        )
        call = ["patch", "apply", checkpoint, first, "--out", tmp_path / "applied"]
        assert "in that dtype" in refused(capsys, *call)
        assert not (tmp_path / "applied").exists()
        dtype = ("--dtype", "bfloat16")
        value(capsys, *call, *dtype)
        value(capsys, "patch", "revert", tmp_path / "applied", first, "--out", tmp_path / "reverted", *dtype)
        value(capsys, "patch", "stack", checkpoint, first, second, "--out", tmp_path / "both.safetensors", *dtype)
        value(capsys, "patch", "export-adapter", checkpoint, first, "--out", tmp_path / "adapter", *dtype)
        original = open_model(checkpoint, dtype="bfloat16", device="cpu").fingerprints()
        assert open_model(tmp_path / "reverted", device="cpu").fingerprints() == original
        assert open_model(tmp_path / "applied", device="cpu").fingerprints() != original

    def test_of_the_patch_in_fine_tuning(
        self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("measure", "compare", "write_report"):  # they take long, and the dtype is settled before
            monkeypatch.setattr(pipeline, name, lambda *_, **__: None)
        patch = make_patch(checkpoint, tmp_path / "patch.safetensors", {3: 1.0}, "bfloat16")
        rows = make_prompts(tmp_path / "rows.jsonl", "say", 2, response="Yes.")
        call = ["finetune", checkpoint, "--data", rows, "--unprotected", "--steps", "1", "--patch", patch]
        assert "in that dtype" in refused(capsys, *call, "--out", tmp_path / "out")
        found = value(capsys, *call, "--out", tmp_path / "out", "--dtype", "bfloat16")
        assert open_model(found["checkpoint"], device="cpu").model.dtype == torch.bfloat16


class TestExportAdapter:
    def test_written_and_described(
        self, checkpoint: Path, patches: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "adapter"
        found = value(capsys, "patch", "export-adapter", checkpoint, patches[0], "--out", out)
        assert (found["rank"], found["tensors"], found["entries"], found["padding"]) == (1, 1, 2, 32 + 48 - 2)
        assert {file.name for file in out.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
        assert "not empty" in refused(capsys, "patch", "export-adapter", checkpoint, patches[0], "--out", out)
        text = printed(capsys, "patch", "export-adapter", checkpoint, patches[0], "--out", tmp_path / "again")
        assert "2 weights of 1 matrices as SHiRA with r = 1, which adds 78 zeros" in text


class TestCard:
    def test_written_once(self, patches: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "README.md"
        call = ["patch", "card", patches[0], "--license", "mit", "--base-model", "owner/name", "--out", out]
        assert value(capsys, *call)["missing"] == ["No run was given, so no measurement is shown."]
        written = out.read_text()
        assert written.startswith("---\nbase_model: owner/name\nlicense: mit\n---\n\n# Patch for tiny\n")
        assert "exists" in refused(capsys, *call)
        assert out.read_text() == written

    def test_bad_input(self, patches: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "README.md"
        assert "is not a file" in refused(capsys, "patch", "card", tmp_path / "none", "--out", out)
        assert "is not a folder" in refused(capsys, "patch", "card", patches[0], "--run", tmp_path / "no", "--out", out)
        assert "Cannot write" in refused(capsys, "patch", "card", patches[0], "--out", patches[0] / "README.md")
        assert not out.exists()
