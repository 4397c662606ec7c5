"""A mixture of experts made from a dense model: every expert is a copy, so the answers stay the same.

It gives a real mixture of experts to try methods on where none can be downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from ballast.errors import ModelError
from ballast.models.language_model import LanguageModel
from ballast.models.streaming import require_in_memory

SHARED_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
)
ROUTER_SCALE = 1e-3  # far below a logit, so the chosen experts share a token almost evenly


@torch.no_grad()
def upcycled(lm: LanguageModel, experts: int = 4, per_token: int = 2, seed: int = 0) -> LanguageModel:
    """A Mixtral model that computes what a dense Llama or Mistral model computes.

    The router's weights are small and random: which experts a token goes to depends on the token, and they count alike.
    The weights that the experts share are copies; the original is not changed.

    Args:
        lm: A dense model of the Llama or Mistral family without biases.
        experts: Experts per layer.
        per_token: Experts that a token goes to.
        seed: Of the router's weights.

    Raises:
        ModelError: The model is of another kind, or streamed.
    """
    config: Any = lm.model.config
    dense = dict(lm.model.named_parameters())
    require_in_memory(dense.values())
    if config.model_type not in ("llama", "mistral") or any(name.endswith("bias") for name in dense):
        raise ModelError(f"{lm.name} is no dense Llama or Mistral model without biases; upcycle one that is.")
    shared = {name: getattr(config, name) for name in SHARED_SETTINGS}
    window = getattr(config, "sliding_window", None)
    made = MixtralConfig(
        **shared, sliding_window=window, num_local_experts=experts, num_experts_per_tok=per_token, dtype=lm.model.dtype
    )
    with torch.device("meta"):
        mixture = MixtralForCausalLM(made)
    torch.nn.Module.to(mixture, lm.model.dtype).to_empty(device=lm.device)  # the model's own `to` has no types
    mixture.model.rotary_emb = type(mixture.model.rotary_emb)(made).to(lm.device)  # its table is no parameter
    mixture.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in mixture.named_parameters():
        parameter.copy_(_weights(name, parameter, dense, generator))
    mixture.generation_config = lm.model.generation_config
    return LanguageModel(mixture.eval(), lm.tokenizer, f"{lm.source}, {experts} experts", lm.revision)


def _weights(
    name: str, parameter: torch.Tensor, dense: Mapping[str, torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    """What a parameter of the mixture holds, out of the parameters of the dense model."""
    if name in dense:
        return dense[name]
    found = re.fullmatch(r"(.*\.mlp\.)(gate\.weight|experts\.gate_up_proj|experts\.down_proj)", name)
    if found is None:
        raise ModelError(f"The dense model has no weights for {name}; upcycle a plain Llama or Mistral model.")
    prefix, kind = found.groups()
    if kind == "gate.weight":
        return ROUTER_SCALE * torch.randn(parameter.shape, generator=generator)
    roles = ("gate_proj", "up_proj") if kind == "experts.gate_up_proj" else ("down_proj",)
    return torch.cat([dense[f"{prefix}{role}.weight"] for role in roles]).expand(parameter.shape)
