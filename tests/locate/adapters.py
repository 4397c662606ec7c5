"""LoRA adapters for the tiny models, made and merged by PEFT itself."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ballast.models import LanguageModel


def adapted(lm: LanguageModel, folder: Path, **settings: Any) -> LanguageModel:
    """Save an adapter with random factors for a model and give the model with it merged; `lm` stays as it is."""
    usual = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    chosen: dict[str, Any] = {**usual, **settings}
    config = LoraConfig(**chosen)
    config.fan_in_fan_out = lm.source == "zoo/gpt2"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses names that transformers is about to give up
        torch.manual_seed(7)
        model = get_peft_model(copy.deepcopy(lm.model), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(str(folder), save_embedding_layers=False)
        merged: Any = model.merge_and_unload()
    return LanguageModel(merged.requires_grad_(False).eval(), lm.tokenizer, f"{lm.source} merged")


def reconfigure(folder: Path, **changes: Any) -> None:
    """Write other values into an adapter's config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Write other tensors into an adapter by the end of their names; None takes them out, new names are added."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for ending, value in changes.items():
        for name in [name for name in tensors if name.endswith(ending)] or [f"base_model.model.{ending}"]:
            tensors.pop(name, None)
            if value is not None:
                tensors[name] = value.clone(memory_format=torch.contiguous_format)
    save_file(tensors, path)
