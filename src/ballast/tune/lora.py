"""Train a low-rank adapter in the place of all weights (LoRA, arXiv 2106.09685), by PEFT."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ballast.errors import UsageError
from ballast.models.fingerprint import seed_of


@dataclass(frozen=True)
class LoraSettings:
    """An adapter on every linear layer of the decoder blocks.

    Attributes:
        rank: Of the two factors of each update.
        alpha: The update is alpha / rank times their product.
        dropout: Share of the inputs of an adapter that a pass leaves out, in [0, 1).
    """

    rank: int = 8
    alpha: int = 32
    dropout: float = 0.05

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise UsageError(f"The LoRA setting {name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"The LoRA setting dropout is {self.dropout}; it is a share, in [0, 1).")


def with_adapter(model: PreTrainedModel, settings: LoraSettings, seed: int) -> Any:
    """The model in PEFT's wrapper, with fresh factors as the only weights that train.

    Args:
        model: It is changed: its linear layers get wrappers.
        settings: See `LoraSettings`.
        seed: Of the factors.

    Raises:
        UsageError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UsageError("Training with LoRA needs an extra package; run `pip install 'ballast-llm[lora]'`.") from error
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",  # all but the output head
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers is about to give up
        torch.manual_seed(seed_of(seed, "lora"))
        return get_peft_model(model, config)


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write the adapter as PEFT does, whole or not at all, in the place of one that is there."""
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        adapted.save_pretrained(str(partial), save_embedding_layers=False)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
