"""What the module tree alone says: where the decoder blocks are and which way round a layer stores its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ballast.errors import ModelError
from ballast.models.roles import Halves, Orientation, Sizes, suggested_role


def decoder_blocks(model: PreTrainedModel, count: int) -> str:
    """The name of the module list that holds the text decoder's blocks.

    Other towers can have as many blocks, so the search starts at the token embedding and widens.

    Raises:
        ModelError: There is none, or there are several.
    """
    embedding = model.get_input_embeddings()
    scope = next((name for name, module in model.named_modules() if module is embedding), "")
    while scope:
        scope = scope.rpartition(".")[0]
        prefix = f"{scope}." if scope else ""
        lists = [
            f"{prefix}{name}"
            for name, module in model.get_submodule(scope).named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count
        ]
        # A list within a block, such as one of experts, may have the same length.
        outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        if len(outermost) == 1:
            return outermost[0]
        if outermost:
            break
    raise ModelError(
        f"{type(model).__name__} has no single list of {count} decoder blocks; use a decoder-only language model."
    )


def block_modules(model: PreTrainedModel) -> nn.ModuleList:
    """The text decoder's blocks, first to last.

    Raises:
        ModelError: As `decoder_blocks`.
    """
    blocks = model.get_submodule(decoder_blocks(model, int(model.config.get_text_config().num_hidden_layers)))
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def linear_orientation(owner: nn.Module) -> Orientation:
    """The order of axes of a linear layer's weight; `none` for any other module."""
    if isinstance(owner, nn.Linear):
        return "out_in"
    return "in_out" if isinstance(owner, Conv1D) else "none"


def expert_halves(owner: nn.Module) -> Halves | None:
    """How a block of experts orders gate and up in their fused tensor; None if it does not declare that."""
    concatenated = getattr(owner, "is_concatenated", None)
    if concatenated is None:
        return None
    return "contiguous" if concatenated else "interleaved"


def expert_orientation(owner: nn.Module, sizes: Sizes) -> Orientation | None:
    """The order of axes in which all 3-D tensors of an expert block have the shapes of their roles.

    `down` alone is ambiguous when inner and hidden width are equal, `gate_up` when one is twice the other; the two
    together never are. Where the block itself declares its order, that order must be the one.
    """
    shapes = {
        suggested_role(["experts", name]): parameter.shape
        for name, parameter in owner.named_parameters(recurse=False)
        if parameter.ndim == 3
    }
    declared = getattr(owner, "is_transposed", None)
    candidates: list[Orientation] = []
    if declared is not True and _experts_fit(sizes, shapes, in_out=False):
        candidates.append("out_in")
    if declared is not False and _experts_fit(sizes, shapes, in_out=True):
        candidates.append("in_out")
    return candidates[0] if len(candidates) == 1 else None


def _experts_fit(sizes: Sizes, shapes: Mapping[str | None, Sequence[int]], in_out: bool) -> bool:
    return all(
        role is not None
        and experts == sizes.experts
        and sizes.allows(role, *((columns, rows) if in_out else (rows, columns)))
        for role, (experts, rows, columns) in shapes.items()
    )
