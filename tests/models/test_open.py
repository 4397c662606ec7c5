"""Opening checkpoints: what arrives, what is refused and why, and what is remembered of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ballast.errors import ModelError
from ballast.models import open_model
from ballast.models.fingerprint import fingerprints, tensor_fingerprint
from tests.zoo import tiny, tiny_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny-llama"
    tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that the test may damage, and an empty cache."""
    monkeypatch.setenv("BALLAST_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(folder: Path, content: Any) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")


class TestOpened:
    def test_a_folder_gives_its_weights_and_tokenizer(self, checkpoint: Path) -> None:
        lm = open_model(checkpoint)
        for name, parameter in tiny("llama").named_parameters():
            assert torch.equal(lm.model.get_parameter(name), parameter), name
        assert lm.tokenizer.encode("Hi") == tiny_tokenizer().encode("Hi")
        assert lm.tokenizer.chat_template == tiny_tokenizer().chat_template
        assert not lm.model.training
        assert lm.source == str(checkpoint)
        assert lm.name == "tiny-llama"
        assert lm.revision is None
        assert lm.files == (checkpoint / WEIGHTS,)
        assert lm.device.type == ("cuda" if torch.cuda.is_available() else "cpu")

    def test_shards_are_all_known(self, checkpoint: Path) -> None:
        (checkpoint / WEIGHTS).unlink()
        tiny("llama").save_pretrained(checkpoint, max_shard_size="20KB")
        lm = open_model(str(checkpoint))
        assert len(lm.files) > 1
        assert lm.files == tuple(sorted(checkpoint.glob("*.safetensors")))
        assert lm.fingerprints() == fingerprints(tiny("llama"))

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16), (torch.float64,) * 2],
    )
    def test_dtypes(self, tmp_path: Path, asked: str | torch.dtype, expected: torch.dtype) -> None:
        tiny("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        lm = open_model(tmp_path, dtype=asked)
        assert {parameter.dtype for parameter in lm.model.parameters()} == {expected}

    def test_a_length_limit_of_the_checkpoint_is_dropped(self, checkpoint: Path) -> None:
        (checkpoint / "generation_config.json").write_text(json.dumps({"max_length": 20}))
        assert open_model(checkpoint).model.generation_config.max_length is None

    def test_pickled_weights_open_only_when_asked_for(self, checkpoint: Path) -> None:
        pickled(checkpoint, tiny("llama").state_dict())
        with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\).*allow_pickle=True"):
            open_model(checkpoint)
        lm = open_model(checkpoint, allow_pickle=True)
        assert torch.equal(lm.model.lm_head.weight, tiny("llama").lm_head.weight)


class Runs:
    """Unpickling this creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


class TestNoForeignCode:
    @pytest.mark.parametrize("allow_pickle", [False, True])
    def test_code_in_a_pickle_does_not_run(self, checkpoint: Path, tmp_path: Path, allow_pickle: bool) -> None:
        pickled(checkpoint, {"weight": Runs(tmp_path / "ran")})
        with pytest.raises(ModelError, match="pickled weights" if not allow_pickle else "Cannot open the model"):
            open_model(checkpoint, allow_pickle=allow_pickle)
        assert not (tmp_path / "ran").exists()

    def test_safetensors_are_preferred_to_a_pickle_beside_them(self, checkpoint: Path, tmp_path: Path) -> None:
        torch.save({"weight": Runs(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
        assert open_model(checkpoint).files == (checkpoint / WEIGHTS,)
        assert not (tmp_path / "ran").exists()

    def test_code_beside_the_weights_does_not_run_unless_asked_for(self, checkpoint: Path, tmp_path: Path) -> None:
        classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        configure(checkpoint, model_type="own", auto_map=classes)
        (checkpoint / "own.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
        with pytest.raises(ModelError, match="custom code"):
            open_model(checkpoint)
        assert not (tmp_path / "ran").exists()


class TestRefused:
    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("config.json", None, r"has no config\.json"),
            ("config.json", b"{", "Cannot open the model"),
            ("config.json", b"[]", "Cannot open the model"),
            (WEIGHTS, None, r"has no weights; it needs a \.safetensors file"),
            (WEIGHTS, b"", r"model\.safetensors is damaged"),
            (WEIGHTS, b"\xff" * 1000, r"model\.safetensors is damaged"),
            ("tokenizer.json", None, "Cannot open the model"),
            ("tokenizer.json", b"{", "Cannot open the model"),
        ],
    )
    def test_a_file_missing_or_damaged(self, checkpoint: Path, file: str, content: bytes | None, message: str) -> None:
        if content is None:
            (checkpoint / file).unlink()
        else:
            (checkpoint / file).write_bytes(content)
        with pytest.raises(ModelError, match=message):
            open_model(checkpoint)

    @pytest.mark.parametrize("kept", [0.5, 0.999])
    def test_truncated_weights(self, checkpoint: Path, kept: float) -> None:
        data = (checkpoint / WEIGHTS).read_bytes()
        (checkpoint / WEIGHTS).write_bytes(data[: int(kept * len(data))])
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged .*; get the checkpoint again"):
            open_model(checkpoint)

    def test_missing_tensors_are_named(self, checkpoint: Path) -> None:
        tensors = load_file(checkpoint / WEIGHTS)
        del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
        save_file(tensors, checkpoint / WEIGHTS, {"format": "pt"})
        with pytest.raises(ModelError, match=r"lacks 2 tensors \(model\.layers\.1\.mlp\.up_proj\.weight, model\.norm"):
            open_model(checkpoint)

    def test_a_missing_shard(self, checkpoint: Path) -> None:
        (checkpoint / WEIGHTS).unlink()
        tiny("llama").save_pretrained(checkpoint, max_shard_size="20KB")
        shard = sorted(checkpoint.glob("*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(ModelError, match=shard.name):
            open_model(checkpoint)

    @pytest.mark.parametrize(
        "changes",
        [
            {"model_type": "no_such_architecture"},
            {"model_type": "t5"},
            {"intermediate_size": 64},
            {"hidden_size": "wide"},
            {"num_attention_heads": 5},
        ],
    )
    def test_a_configuration_that_does_not_fit(self, checkpoint: Path, changes: dict[str, Any]) -> None:
        configure(checkpoint, **changes)
        with pytest.raises(ModelError, match="Cannot open the model") as caught:
            open_model(checkpoint)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize("source", ["no_such_name", "/no/such/folder", "a b/c", "owner/name/more"])
    def test_neither_a_folder_nor_a_hub_id(self, source: str) -> None:
        with pytest.raises(ModelError, match=r"is not a model folder; give a folder with config\.json, a hub id"):
            open_model(source)

    def test_a_file_is_not_a_folder(self, checkpoint: Path) -> None:
        with pytest.raises(ModelError, match="is not a model folder"):
            open_model(checkpoint / WEIGHTS)

    def test_a_hub_model_that_cannot_be_had(self) -> None:
        with pytest.raises(ModelError, match="Cannot open the model no-such-owner/no-such-model: "):
            open_model("no-such-owner/no-such-model")

    def test_an_unknown_dtype(self, checkpoint: Path) -> None:
        with pytest.raises(ModelError, match="Unknown dtype 'int8'; use auto, float32, bfloat16, float16"):
            open_model(checkpoint, dtype="int8")

    @pytest.mark.parametrize("device", ["abacus", "cuda:99"])
    def test_an_unknown_device(self, checkpoint: Path, device: str) -> None:
        with pytest.raises(ModelError, match=f"The device {device} cannot be used here; give cpu"):
            open_model(checkpoint, device=device)


class TestFingerprints:
    def test_they_are_remembered_by_the_stamp_of_the_files(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = fingerprints(tiny("llama"))
        computed: list[torch.Tensor] = []

        def counted(tensor: torch.Tensor) -> str:
            computed.append(tensor)
            return tensor_fingerprint(tensor)

        monkeypatch.setattr("ballast.models.fingerprint.tensor_fingerprint", counted)
        assert open_model(checkpoint).fingerprints() == expected
        assert len(computed) == len(expected)
        assert len(list((tmp_path / "cache" / "fingerprints").iterdir())) == 1
        computed.clear()
        assert open_model(checkpoint).fingerprints() == expected
        assert computed == []

        stamp = (checkpoint / WEIGHTS).stat().st_mtime_ns + 1_000_000
        os.utime(checkpoint / WEIGHTS, ns=(stamp, stamp))
        assert open_model(checkpoint).fingerprints() == expected
        assert len(computed) == len(expected)

    def test_another_dtype_is_another_model(self, checkpoint: Path) -> None:
        plain, narrow = open_model(checkpoint), open_model(checkpoint, dtype="bfloat16")
        assert plain.fingerprints() == fingerprints(tiny("llama"))
        assert narrow.fingerprints() == fingerprints(tiny("llama", dtype=torch.bfloat16))
        assert narrow.identity()["fingerprint"] != plain.identity()["fingerprint"]

    def test_new_weights_in_the_same_folder_are_seen(self, checkpoint: Path) -> None:
        open_model(checkpoint).fingerprints()
        tiny("llama", seed=1).save_pretrained(checkpoint)
        assert open_model(checkpoint).fingerprints() == fingerprints(tiny("llama", seed=1))

    def test_a_change_in_memory_is_seen(self, checkpoint: Path) -> None:
        lm = open_model(checkpoint)
        before = lm.fingerprints()
        with torch.no_grad():
            lm.model.get_parameter("model.norm.weight")[0] += 1
        after = lm.fingerprints()
        assert {name for name in before if before[name] != after[name]} == {"model.norm.weight"}
        assert open_model(checkpoint).fingerprints() == before

    def test_the_identity_for_a_manifest(self, checkpoint: Path) -> None:
        lm = open_model(checkpoint)
        identity = lm.identity()
        assert len(identity.pop("fingerprint")) == 64
        assert identity == {
            "source": str(checkpoint),
            "name": "tiny-llama",
            "revision": None,
            "class": "LlamaForCausalLM",
            "dtype": "float32",
            "parameters": sum(parameter.numel() for parameter in tiny("llama").parameters()),
        }
        json.dumps(identity)
