"""The Python of docs/patch.md, run as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ballast.patches import export, stack
from tests.patches.world import patch_of
from tests.worlds import tiny_lm

torch.set_num_threads(1)

DOCS = Path(__file__).parents[2] / "docs" / "patch.md"


def snippet(word: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    [found] = [block for block in blocks if word in block]
    return str(found)


@pytest.mark.parametrize("name", ["llama", "qwen2"])  # with an output head of its own, and with a tied one
def test_patch_read_with_safetensors_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, patch = tiny_lm(name), patch_of(name)
    export(lm, None, tmp_path / "base")
    export(lm, patch, tmp_path / "patched")
    patch.save(tmp_path / "patch.safetensors")
    checkpoint, expected = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "patched"))
    assert any(not torch.equal(checkpoint[key], expected[key]) for key in expected)
    monkeypatch.chdir(tmp_path)
    exec(snippet("def changes"), {"checkpoint": checkpoint})
    assert checkpoint.keys() == expected.keys()
    assert all(torch.equal(checkpoint[key], expected[key]) for key in expected)


@pytest.mark.parametrize("parts", [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")])
def test_places_in_a_fused_tensor(parts: tuple[str, ...]) -> None:
    """Entries written into joined rows are the rows of the patched parts, joined."""
    patch, lm = patch_of(), tiny_lm()
    block = "self_attn" if "q_proj" in parts else "mlp"
    names = [f"model.layers.1.{block}.{part}.weight" for part in parts]
    found: dict[str, Any] = {}
    exec(snippet("def in_fused"), found)
    before = [lm.model.get_parameter(name).detach().clone() for name in names]
    with patch.applied(lm.model):
        expected = torch.cat([lm.model.get_parameter(name).detach() for name in names])
    fused = torch.cat(before)
    rows, columns = [len(part) for part in before], before[0].shape[1]
    for place, name in enumerate(names):
        entries = patch.entries[name]
        fused.view(-1)[found["in_fused"](entries.indices.long(), rows, place, columns)] = entries.values
    assert not torch.equal(torch.cat(before), expected)
    assert torch.equal(fused, expected)


def test_stack() -> None:
    lm, names = tiny_lm(), {"first": patch_of(), "second": patch_of(seed=2)}
    found: dict[str, Any] = {**names, "lm": lm}
    exec(snippet("import stack"), found)
    expected = stack(list(names.values()), lm.model, on_conflict="last")
    assert found["conflicts"] == expected.conflicts != {}
    assert found["patch"].header.tensors == expected.patch.header.tensors
