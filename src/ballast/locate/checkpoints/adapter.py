"""Read a LoRA adapter that PEFT saved: per weight matrix the two factors of its update, dW = scale * B A.

The folder's `adapter_config.json` and `adapter_model.safetensors` are all that is opened. Names in them are looked up
in the model; a path or model that they mention is never followed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ballast.errors import ModelError
from ballast.locate.checkpoints.adapter_config import AdapterConfig, read_config
from ballast.locate.checkpoints.directions import Matrix
from ballast.models import LanguageModel
from ballast.models.fingerprint import combined, tensor_fingerprint
from ballast.models.parts import Part

PREFIX = "base_model.model."
HALF = re.compile(r"(?P<place>.+)\.lora_(?P<half>[AB])\.weight")
NESTED = ".base_layer"  # behind a module's name if several of its parameters are adapted, once for each but the last
LEFT_OUT = {  # tensors of plain LoRA that are no update of a weight matrix
    re.compile(r".+\.lora_embedding_[AB]"): "token embedding",
    re.compile(r".+\.lora_B\.bias"): "bias",
    re.compile(r"(?!.*\blora_).+"): "not a low-rank update",
}


class LowRank(NamedTuple):
    """The update of one weight matrix, left @ right (out, in).

    Attributes:
        left: scale * B, (out, rank) fp32.
        right: A, (rank, in) fp32.
    """

    left: torch.Tensor
    right: torch.Tensor


@dataclass(frozen=True)
class Adapter:
    """The update that an adapter makes.

    Attributes:
        factors: The update of each eligible weight matrix that it changes.
        left_out: What else the adapter changes, and why it is not in `factors`.
        trained_on: The base model in the words of the adapter's config; empty if it names none.
        fingerprint: SHA-256 over all of its tensors.
    """

    factors: dict[Matrix, LowRank]
    left_out: dict[str, str]
    trained_on: str
    fingerprint: str


def read_adapter(lm: LanguageModel, folder: str | Path) -> Adapter:
    """Read a folder that PEFT's `save_pretrained` wrote.

    Args:
        lm: The model it belongs to; says which way round its weights are stored, so PEFT's `fan_in_fan_out` is not
            needed. Its weights are not read.
        folder: The adapter.

    Raises:
        ModelError: The folder is no readable adapter, is of a kind other than plain LoRA, belongs to another model, or
            adapts no weight that can be scored.
    """
    folder = Path(folder)
    config, tensors = read_config(folder), _tensors(folder)
    pairs: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    left_out = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if found := HALF.fullmatch(name):
            pairs[found["place"]][found["half"]] = tensor
        else:
            left_out[name] = _reason(folder, name)
    factors: dict[Matrix, LowRank] = {}
    modules, parts = dict(lm.model.named_modules()), {part.name: part for part in lm.parts}
    for place, pair in pairs.items():
        module = place.replace(NESTED, "")
        if module not in modules:
            raise ModelError(f"{folder} adapts {module}, which {lm.name} does not have; it is for another model.")
        owned = [part for part in lm.parts.eligible() if part.name.rpartition(".")[0] == module]
        if owned:
            part = _adapted(folder, module, pair, config, owned)
            factors |= _factors(part, pair["A"].float(), config.scale(part) * pair["B"].float())
        else:
            alone = parts.get(f"{module}.weight")
            left_out[module] = alone.reason if alone else "tied to another module, or no weight matrix that is known"
    if not factors:
        changed = ", ".join(sorted(left_out)[:3]) or "nothing"
        raise ModelError(f"{folder} adapts no projection in a decoder block (but {changed}); give another adapter.")
    fingerprint = combined({key: tensor_fingerprint(tensor) for key, tensor in tensors.items()})
    return Adapter(factors, left_out, config.base_model_name_or_path or "", fingerprint)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors; save the adapter as safetensors, not pickled.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged ({error}); save the adapter again.") from error


def _reason(folder: Path, name: str) -> str:
    """Why a tensor that is no half of an update is left out."""
    for form, reason in LEFT_OUT.items():
        if form.fullmatch(name):
            return reason
    raise ModelError(f"{folder} has the tensor {name}, which plain LoRA has not; merge it with PEFT and give a base.")


def _adapted(
    folder: Path, module: str, pair: Mapping[str, torch.Tensor], config: AdapterConfig, owned: Sequence[Part]
) -> Part:
    """The parameter of a module that two factors fit; a module of experts owns several."""
    found = {half: tuple(tensor.shape) for half, tensor in pair.items()}
    fitting = [part for part in owned if found == _expected_shapes(part, config.rank(part))]
    if len(fitting) != 1:
        raise ModelError(
            f"{folder} has factors of shapes {found} for {module}, which do not fit its weights; it is damaged or for "
            "another model."
        )
    if fitting[0].expert_dim is not None and fitting[0].orientation == "out_in" and config.before((0, 19)):
        raise ModelError(
            f"{folder} adapts experts and was saved by a PEFT before 0.19, which stored such factors the other way "
            "round; merge it with that version and give the checkpoint it was trained on as base."
        )
    return fitting[0]


def _expected_shapes(part: Part, rank: int) -> dict[str, tuple[int, int]]:
    outputs, inputs = part.shape[-2:] if part.orientation == "out_in" else part.shape[:-3:-1]
    ranks = rank if part.expert_dim is None else rank * part.shape[part.expert_dim]
    return {"A": (ranks, inputs), "B": (outputs, ranks)}


def _factors(part: Part, a: torch.Tensor, b: torch.Tensor) -> dict[Matrix, LowRank]:
    """One pair per matrix; those of experts lie in A expert by expert, in B rank by rank."""
    if part.expert_dim is None:
        return {Matrix(part.name, None): LowRank(b, a)}
    experts = part.shape[part.expert_dim]
    lefts = b.unflatten(1, (-1, experts)).unbind(2)  # (out, rank) each
    rights = a.unflatten(0, (experts, -1)).unbind(0)  # (rank, in) each
    return {Matrix(part.name, expert): LowRank(*pair) for expert, pair in enumerate(zip(lefts, rights, strict=True))}
