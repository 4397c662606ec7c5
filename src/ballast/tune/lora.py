"""Train a low-rank adapter in the place of all weights (LoRA, arXiv 2106.09685), by PEFT."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ballast.errors import UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import seed_of
from ballast.patches.folder import new_folder


@dataclass(frozen=True)
class LoraSettings:
    """An adapter on every linear projection of the decoder blocks.

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


def require_peft() -> None:
    """Refuse to start without the package that adapters are made by.

    Raises:
        UsageError: PEFT is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError("Training with LoRA needs an extra package; run `pip install 'ballast-llm[lora]'`.")


def adapted_modules(lm: LanguageModel) -> list[str]:
    """The linear modules that hold an eligible projection; not routers and gates of shared experts."""
    owners = (part.name.rpartition(".")[0] for part in lm.parts.eligible())
    return [name for name in owners if isinstance(lm.model.get_submodule(name), nn.Linear | Conv1D)]


def with_adapter(model: PreTrainedModel, modules: Sequence[str], settings: LoraSettings, seed: int) -> Any:
    """The model in PEFT's wrapper, with fresh factors as the only weights that train.

    Args:
        model: It is changed: these modules get wrappers.
        modules: Names of the modules to adapt, see `adapted_modules`.
        settings: See `LoraSettings`.
        seed: Of the factors.

    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(modules),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers is about to give up
        torch.manual_seed(seed_of(seed, "lora"))
        return get_peft_model(model, config)


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write the adapter as PEFT does, whole or not at all, in the place of one that is there.

    Raises:
        RunError: The folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder, "adapter") as partial:
        adapted.save_pretrained(str(partial), save_embedding_layers=False)
