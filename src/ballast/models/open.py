"""Open a checkpoint: the embedded model, a folder, or a model on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ballast.errors import ModelError
from ballast.models.embedded import EMBEDDED, embedded_checkpoint
from ballast.models.language_model import LanguageModel
from ballast.models.streaming import open_streamed

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
UNREADABLE = (  # what transformers raises for a checkpoint that is missing, damaged or not what it claims to be
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    SafetensorError,
    StrictDataclassError,
    UnpicklingError,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    stream: bool = False,
) -> LanguageModel:
    """Open a causal language model.

    Args:
        source: `smollm2` or `gemma3-270m` (embedded models), the folder of a checkpoint, or a hub id such as
            `owner/name`.
        dtype: `auto` keeps the checkpoint's; or `float32`, `bfloat16`, `float16`.
        device: `cpu`, `cuda`, ...; by default a GPU if there is one.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run Python code that comes with the checkpoint. It can do anything; off by default.
        allow_pickle: Accept pickled weights (`.bin`, `.pt`). Loading them can run code; off by default.
        stream: Keep the decoder blocks in their safetensors files and read each one when it runs, for a model that does
            not fit into memory. Such a model can be scored by methods that need no gradients, and nothing else.

    Raises:
        ModelError: The model is not there, is incomplete or damaged, or needs a permission that was not given; the
            dtype or the device is unknown here.
    """
    if isinstance(dtype, str) and dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}.")
    place = _usable(device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu"))
    location = str(embedded_checkpoint(str(source)) if str(source) in EMBEDDED else source)
    files: tuple[Path, ...] = ()
    if Path(location).is_dir():
        files = _check_folder(Path(location), allow_pickle=allow_pickle)
    elif Path(location).exists() or not HUB_ID.fullmatch(location):
        raise ModelError(
            f"{location} is not a model folder; give a folder with config.json, a hub id, or {' or '.join(EMBEDDED)}."
        )
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        options["dtype"] = DTYPES.get(dtype, "auto") if isinstance(dtype, str) else dtype
        model, loading, stored = (
            open_streamed(location, place, **options) if stream else _opened(location, place, allow_pickle, options)
        )
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        advice = "; give the unquantised checkpoint" if _is_quantised(location) else ""
        raise ModelError(f"Cannot open the model {source}: {reason}{advice}") from error
    if loading["missing_keys"]:
        named = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ModelError(
            f"The checkpoint {source} lacks {len(loading['missing_keys'])} tensors ({named}); get it again."
        )
    model.generation_config.max_length = None  # a checkpoint's own limit would cut our answers
    return LanguageModel(model, tokenizer, str(source), revision, files, stored)


def _opened(
    location: str, place: torch.device, allow_pickle: bool, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any], Mapping[str, torch.Tensor]]:
    """The whole model in memory, what transformers says of the loading, and no weights in files."""
    opened: Any = AutoModelForCausalLM.from_pretrained(
        location, use_safetensors=None if allow_pickle else True, output_loading_info=True, **options
    )
    model: PreTrainedModel = opened[0]
    torch.nn.Module.to(model, place)  # the model's own `to` has no types
    return model, opened[1], {}


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # an AssertionError if PyTorch was built without it
        raise ModelError(f"The device {device} cannot be used here; give cpu, or another that PyTorch has.") from error


def _is_quantised(location: str) -> bool:
    """Whether a folder's configuration says that its weights are quantised."""
    config = Path(location) / "config.json"
    return config.is_file() and b'"quantization_config"' in config.read_bytes()


def _check_folder(folder: Path, *, allow_pickle: bool) -> tuple[Path, ...]:
    """The weight files of a local checkpoint, each with a readable header."""
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json; give the folder of a transformers checkpoint.")
    files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if not pickled:
            raise ModelError(f"{folder} has no weights; it needs a .safetensors file.")
        if not allow_pickle:
            raise ModelError(
                f"{folder} has only pickled weights ({pickled[0].name}), which can run code when read; "
                "convert them to safetensors or pass allow_pickle=True (--allow-pickle)."
            )
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged ({error}); get the checkpoint again.") from error
    return files
