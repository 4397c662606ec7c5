"""Tiny random models of every architecture, and a tokenizer that fits all of them; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

SPECIAL_TOKENS = ("<pad>", "<s>", "<|im_start|>", "<|im_end|>")
PAD, BOS, TURN, EOS = range(4)
VOCABULARY = len(SPECIAL_TOKENS) + 256
CONTEXT = 512
HIDDEN, INNER = 32, 48

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "num_hidden_layers": 2,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 4,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.15,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}


def _config(name: str) -> PretrainedConfig:
    match name:
        case "llama":
            return LlamaConfig(**GROUPED)
        case "mistral":
            return MistralConfig(**GROUPED, sliding_window=64)
        case "qwen2":
            return Qwen2Config(**GROUPED, tie_word_embeddings=True)
        case "qwen3":
            return Qwen3Config(**GROUPED, head_dim=16)
        case "gemma3":
            layers = ["sliding_attention", "full_attention"]
            return Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=64, layer_types=layers)
        case "gpt2":
            return GPT2Config(**{key: value for key, value in COMMON.items() if key != "intermediate_size"})
        case "qwen3_moe":  # one dense block, two with experts whose inner width equals the hidden width
            moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN, "mlp_only_layers": [0]}
            return Qwen3MoeConfig(**{**GROUPED, **moe, "num_hidden_layers": 3, "head_dim": 16})
        case "mixtral":
            return MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
        case "gpt_oss":  # experts stored the other way round, again with equal widths
            moe = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": HIDDEN, "head_dim": 8}
            return GptOssConfig(**{**GROUPED, **moe, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
        case "olmo2":
            return Olmo2Config(**GROUPED)
        case "phi3":
            return Phi3Config(**GROUPED)
        case "gpt_neox":
            return GPTNeoXConfig(**COMMON)
        case "gemma2":
            return Gemma2Config(**GROUPED, head_dim=16, sliding_window=64)
        case "smollm3":
            return SmolLM3Config(**GROUPED)
        case "olmoe":
            return OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2)
        case "deepseek_v3":  # attention through latent vectors; one dense block, two with routed and shared experts
            heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 24, "num_key_value_heads": 4}
            moe = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 16}
            layers = {"num_hidden_layers": 3, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
            return DeepseekV3Config(**{**COMMON, **heads, **moe, **layers, "q_lora_rank": 12, "kv_lora_rank": 20})
    raise KeyError(name)


ARCHITECTURES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3",
    "gpt2",
    "qwen3_moe",
    "mixtral",
    "gpt_oss",
    "olmo2",
    "phi3",
    "gpt_neox",
    "gemma2",
    "smollm3",
    "olmoe",
    "deepseek_v3",
)


def tiny(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of one architecture in evaluation mode; its vocabulary is that of `tiny_tokenizer`.

    Biases, norms and sinks are random too, so that no test passes because they are zero or one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(name))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.ndim == 1 or parameter_name.endswith("_bias"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def tiny_on_meta(name: str) -> PreTrainedModel:
    """The same architecture without any weight in memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(_config(name))


def tiny_tokenizer(template: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte, four special tokens and a ChatML template; `template=False` leaves the template out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=CONTEXT,
    )
    fast.chat_template = CHAT_TEMPLATE if template else None
    return fast
