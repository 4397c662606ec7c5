"""Which line of which parameter makes which dimension of which attention head."""

from __future__ import annotations

from typing import Any

import torch

from ballast.models.attention import Attention, observed_attention, shows_attention
from ballast.models.language_model import LanguageModel
from ballast.models.parts import Part

DIGIT = 128  # integers up to 256 are exact in bfloat16
Rows = dict[str, tuple[Part, torch.Tensor]]


def attention_rows(lm: LanguageModel) -> dict[int, Rows]:
    """Per layer and kind (`query`, `key`, `value`, `output`) the parameter, and its line for each (head, dimension).

    Lines are output neurons, and input columns for `output`; tables are (heads, head size) int64. A fused projection is
    taken apart by a probe. A kind is missing where the lines are not those of heads, as with latent attention.
    """
    config: Any = lm.model.config.get_text_config()
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    layers = lm.parts.by_layer()
    probed = _probed(lm, {layer: parts["qkv"] for layer, parts in layers.items() if "qkv" in parts})
    found: dict[int, Rows] = {}
    for layer, parts in layers.items():
        rows = {kind: (parts["qkv"], table) for kind, table in probed.get(layer, {}).items()}
        latent = any(role.startswith("key_value_") for role in parts)
        for kind, count in (("query", heads), ("key", keys), ("value", keys)):
            if kind in parts and not latent:
                rows[kind] = (parts[kind], torch.arange(matrix_shape(parts[kind])[0]).reshape(count, -1))
        if "output" in parts:
            rows["output"] = (parts["output"], torch.arange(matrix_shape(parts["output"])[1]).reshape(heads, -1))
        found[layer] = rows
    return found


def matrix_shape(part: Part) -> tuple[int, int]:
    """Outputs and inputs of one weight matrix of a parameter."""
    rows, columns = part.shape[-2:]
    return (rows, columns) if part.orientation == "out_in" else (columns, rows)


@torch.no_grad()
def _probed(lm: LanguageModel, fused: dict[int, Part]) -> dict[int, dict[str, torch.Tensor]]:
    """Which output of a fused projection becomes which (head, dimension) of query, key and value, per layer.

    The projections are made to put out the digits of their own row numbers for one token: at position 0 rotation
    changes nothing, so attention shows where each row went. Layers whose rows do not all turn up once are left out, and
    all layers of a model that does not show its attention.
    """
    if not fused or not shows_attention(lm):
        return {}
    sizes = {layer: matrix_shape(part)[0] for layer, part in fused.items()}
    found: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in fused}
    factor = 1
    while factor <= max(sizes.values()):
        seen: list[Attention] = []
        hooks = []
        for layer, part in fused.items():
            digits = (torch.arange(sizes[layer], device=lm.device) // factor % DIGIT).to(lm.model.dtype)
            owner = lm.model.get_submodule(part.name.rpartition(".")[0])
            hooks.append(owner.register_forward_hook(lambda *_, digits=digits: digits.expand(1, 1, -1)))
        try:
            with observed_attention(lm, seen.append):
                lm.model(input_ids=torch.full((1, 1), lm.pad_id, device=lm.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        for attention in seen:
            for kind in ("query", "key", "value") if attention.layer in fused else ():
                digit = getattr(attention, kind)[0, :, 0].double().round().long().cpu()
                tables = found[attention.layer]
                tables[kind] = tables.get(kind, 0) + digit * factor
        factor *= DIGIT
    return {layer: tables for layer, tables in found.items() if _is_complete(tables, sizes[layer])}


def _is_complete(tables: dict[str, torch.Tensor], size: int) -> bool:
    together = torch.cat([table.flatten() for table in tables.values()])
    return torch.equal(together.sort().values, torch.arange(size))
