"""Bytes that training takes beside activations, from the shapes of a model: SET and dense AdamW.

    SET:    b n_all + 20 k + b max_W n_W          16 k where no gradients are added up or clipped
    dense:  b n_all (1 weight + 1 gradient + 2 moments), and 1 more with a mask

b is the bytes of a weight, n_all how many there are, k how many SET trains, n_W how many a tensor with selected weights
has: gradients are dropped one by one. Run `python benchmarks/memory_formula.py` for Llama-3-8B; no weight is read.
"""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from ballast.models.parts import part_map
from ballast.tune.sparse_adamw import BYTES_PER_ENTRY

LLAMA_3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)


def predicted(model: PreTrainedModel, entries: int) -> dict[str, dict[str, int]]:
    """Bytes of SET on `entries` weights, and of dense AdamW on all, by what they are for."""
    size = model.dtype.itemsize
    weights = size * sum(value.numel() for value in model.parameters())
    largest = size * max(part.numel for part in part_map(model).eligible())
    buffer = entries * torch.float32.itemsize
    found = {
        "SET": {"weights": weights, "gradients": largest, "state": BYTES_PER_ENTRY * entries},
        "SET, nothing added up": {
            "weights": weights,
            "gradients": largest,
            "state": BYTES_PER_ENTRY * entries - buffer,
        },
        "dense AdamW": {"weights": weights, "gradients": weights, "state": 2 * weights},
        "dense AdamW, masked": {"weights": weights, "gradients": weights, "state": 3 * weights},
    }
    return {arm: {**parts, "total": sum(parts.values())} for arm, parts in found.items()}


def llama_3_8b() -> dict[str, object]:
    """The model in bfloat16 with 1 % of its eligible weights, and with 1 % of all."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(LLAMA_3_8B, dtype=torch.bfloat16)
    eligible = sum(part.numel for part in part_map(model).eligible())
    everything = sum(value.numel() for value in model.parameters())
    return {
        "weights": everything,
        "eligible": eligible,
        **{
            name: {"k": count // 100, "bytes": predicted(model, count // 100)}
            for name, count in {"1 % of the eligible weights": eligible, "1 % of all weights": everything}.items()
        },
    }


if __name__ == "__main__":
    print(json.dumps(llama_3_8b(), indent=2))
