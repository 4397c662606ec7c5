"""Models that do not fit into memory: the weights of a decoder block are read when it runs and dropped behind it.

transformers opens such a model and says in which file each weight lies (`device_map` "disk"). The hooks with which
accelerate would read them replace `forward` of every module, as the observation of experts does for its time, so the
two cannot stand side by side. Hooks before and behind each block take their place: what runs in between finds ordinary
weights. Between passes every parameter of a block is empty, on the meta device.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import OffloadedWeightsLoader
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ballast.errors import ModelError
from ballast.models.cache import cache_folder
from ballast.models.tree import decoder_blocks


def require_in_memory(tensors: Iterable[torch.Tensor]) -> None:
    """Refuse weights that are not there to be trained, changed or asked over and over.

    Raises:
        ModelError: One of them is the empty place of a streamed weight.
    """
    if any(tensor.is_meta for tensor in tensors):
        raise ModelError(
            "The model was opened with stream=True (--stream), so its weights are not in memory and it can only be "
            "scored by forward passes, not trained, changed, saved or asked for answers; open it without."
        )


def open_streamed(
    location: str, place: torch.device, revision: str | None, trust_remote_code: bool, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any], Mapping[str, torch.Tensor]]:
    """Open a safetensors checkpoint with everything but its decoder blocks in memory.

    Weights are read where they are. Those that transformers merges while it opens a checkpoint, as experts that are
    stored one by one, are written to the cache folder once more and removed with the model.

    Args:
        location: Folder or hub id.
        place: Where the model computes.
        revision: As for `open_model`.
        trust_remote_code: As for `open_model`.
        **options: Further options of `from_pretrained`.

    Returns:
        The model, what transformers says of the loading, and the weights of the blocks by parameter name, each read
        from its file when asked for.

    Raises:
        ModelError: The decoder blocks cannot be found, or a weight in a file has another shape than in the model.
    """
    origin: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(location, **origin)
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    blocks = decoder_blocks(empty, int(config.get_text_config().num_hidden_layers))
    cache_folder().mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo, _opening(location):
        folder = Path(tempfile.mkdtemp(prefix="streamed-", dir=cache_folder()))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        opened: Any = AutoModelForCausalLM.from_pretrained(
            location,
            use_safetensors=True,
            output_loading_info=True,
            device_map=_places(empty, blocks, str(place)),
            offload_folder=str(folder),
            **origin,
            **options,
        )
        model: PreTrainedModel = opened[0]
        stored = _detached(model, blocks, place)
        weakref.finalize(model, undo.pop_all().close)
    for number, block in enumerate(model.get_submodule(blocks).children()):
        _stream(block, f"{blocks}.{number}", stored)
    return model, opened[1], stored


def _places(model: nn.Module, blocks: str, place: str) -> dict[str, str]:
    """Where each module goes: the blocks stay on disk, what stands beside them on the way down goes to `place`."""
    places = {blocks: "disk"}
    path = blocks.split(".")
    for depth, below in enumerate(path):
        above = path[:depth]
        for name, _ in model.get_submodule(".".join(above)).named_children():
            if name != below:
                places[".".join([*above, name])] = place
    return places


@contextmanager
def _opening(location: str) -> Iterator[None]:
    """Without the warning that weights are on disk, which is what was asked for; and with a clear error.

    Raises:
        ModelError: transformers cannot open the checkpoint in this way, as when a weight is missing.
    """
    logger = logging.getLogger("accelerate.big_modeling")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"Cannot stream {location} ({reason}); open it without stream=True (--stream), which names missing weights."
        ) from error
    finally:
        logger.setLevel(before)


def _detached(model: PreTrainedModel, blocks: str, place: torch.device) -> Mapping[str, torch.Tensor]:
    """Take accelerate's hooks off; give back the files of the weights that they knew.

    Raises:
        ModelError: A weight has another shape in its file.
    """
    hooks: list[Any] = [getattr(module, "_hf_hook", None) for module in model.get_submodule(blocks).modules()]
    known = next(hook.weights_map for hook in hooks if getattr(hook, "weights_map", None) is not None)
    index: dict[str, dict[str, str]] = known.dataset.index
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        vars(module).pop("forward", None)  # left behind by the removal: the method of the class, bound
    for name, parameter in model.get_submodule(blocks).named_parameters(prefix=blocks):
        shape = _shape_in_file(index[name])
        if shape != parameter.shape:
            raise ModelError(
                f"{name} is {shape} in the checkpoint and {tuple(parameter.shape)} by its config; get it again."
            )
    weights: Mapping[str, torch.Tensor] = OffloadedWeightsLoader(index=index, device=str(place))
    return weights


def _shape_in_file(entry: Mapping[str, str]) -> tuple[int, ...]:
    with safe_open(entry["safetensors_file"], framework="pt") as file:
        return tuple(file.get_slice(entry["weight_name"]).get_shape())


def _stream(block: nn.Module, prefix: str, stored: Mapping[str, torch.Tensor]) -> None:
    """Let a block read its weights before each call and drop them behind it, also if the call fails."""
    empty = dict(block.named_parameters())

    def put(name: str, parameter: nn.Parameter) -> None:
        owner, _, leaf = name.rpartition(".")
        block.get_submodule(owner).register_parameter(leaf, parameter)

    def read(*_: Any) -> None:
        for name in empty:
            put(name, nn.Parameter(stored[f"{prefix}.{name}"], requires_grad=False))

    def drop(*_: Any) -> None:
        for name, parameter in empty.items():
            put(name, parameter)

    block.register_forward_pre_hook(read)
    block.register_forward_hook(drop, always_call=True)
