"""The protection within the trainers of TRL, as the README writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ballast.tune import SafetyPreserving
from tests.tune.test_safety_preserving import bits, changed, world
from tests.worlds import tiny_lm

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

OPTIONS: dict[str, Any] = {
    "max_steps": 5,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


def protected(kind: type[SFTTrainer] | type[DPOTrainer], arguments: Any, row: dict[str, str], *reference: Any) -> None:
    """Train on copies of a row; the region keeps its bits and most of the rest moves."""
    lm, region = world()
    before = bits(lm.model)
    kind(
        lm.model,
        *reference,
        arguments,
        train_dataset=Dataset.from_list([row] * 10),
        processing_class=lm.tokenizer,
        callbacks=[SafetyPreserving(region)],
    ).train()
    inside, outside = changed(before, lm.model, region)
    assert inside == 0
    assert outside > 0.5


def test_supervised(tmp_path: Path) -> None:
    arguments = SFTConfig(output_dir=str(tmp_path), **OPTIONS)
    protected(SFTTrainer, arguments, {"prompt": "Hi", "completion": " there, friend"})


def test_preferences(tmp_path: Path) -> None:
    arguments = DPOConfig(output_dir=str(tmp_path), **OPTIONS)
    protected(DPOTrainer, arguments, {"prompt": "Hi", "chosen": " there, friend", "rejected": " no"}, tiny_lm().model)
