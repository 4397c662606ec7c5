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


def test_supervised(tmp_path: Path) -> None:
    lm, region = world()
    before = bits(lm.model)
    data = Dataset.from_list([{"prompt": "Hi", "completion": " there, friend"}] * 10)
    arguments = SFTConfig(output_dir=str(tmp_path), **OPTIONS)
    SFTTrainer(
        lm.model,
        arguments,
        train_dataset=data,
        processing_class=lm.tokenizer,
        callbacks=[SafetyPreserving(region)],
    ).train()
    inside, outside = changed(before, lm.model, region)
    assert inside == 0
    assert outside > 0.5


def test_preferences(tmp_path: Path) -> None:
    lm, region = world()
    before = bits(lm.model)
    data = Dataset.from_list([{"prompt": "Hi", "chosen": " there, friend", "rejected": " no"}] * 10)
    arguments = DPOConfig(output_dir=str(tmp_path), **OPTIONS)
    DPOTrainer(
        lm.model,
        tiny_lm().model,
        arguments,
        train_dataset=data,
        processing_class=lm.tokenizer,
        callbacks=[SafetyPreserving(region)],
    ).train()
    inside, outside = changed(before, lm.model, region)
    assert inside == 0
    assert outside > 0.5
