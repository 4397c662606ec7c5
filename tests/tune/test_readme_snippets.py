"""The lines that the README adds to a training script, run as they are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tests.tune.test_safety_preserving import bits, changed, rows, world

torch.set_num_threads(1)

README = Path(__file__).parents[2] / "README.md"
OPTIONS: dict[str, Any] = {
    "max_steps": 5,
    "learning_rate": 1e-2,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
@pytest.mark.parametrize("name", ["Trainer", "SFTTrainer"])
def test_as_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```py\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    [snippet] = [block for block in blocks if f"\n{name}(" in block]
    lm, region = world()
    before = bits(lm.model)
    lm.tokenizer.save_pretrained(tmp_path)
    lm.model.config._name_or_path = str(tmp_path)  # where TRL looks for the tokenizer
    region.save(tmp_path / "region.safetensors")
    monkeypatch.chdir(tmp_path)
    texts = Dataset.from_list([{"prompt": "Hi", "completion": " there, friend"}] * 10)
    names = {
        "model": lm.model,
        "Trainer": Trainer,
        "SFTTrainer": SFTTrainer,
        "rows": rows(lm) if name == "Trainer" else texts,
        "arguments": (TrainingArguments if name == "Trainer" else SFTConfig)(output_dir=str(tmp_path), **OPTIONS),
    }
    exec(snippet, names)
    inside, outside = changed(before, lm.model, region)
    assert inside == 0
    assert outside > 0.5
