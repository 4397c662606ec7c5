"""A region that keeps its bits while real trainers train everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from ballast.errors import ProtectionError, RegionError
from ballast.locate import locate
from ballast.models import LanguageModel
from ballast.regions import Region
from ballast.tune import SafetyPreserving
from tests.worlds import REFUSALS, REQUESTS, prompt_set, tiny_lm

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", REQUESTS, REFUSALS)
STEPS = 20


def world(dtype: torch.dtype = torch.float32) -> tuple[LanguageModel, Region]:
    lm = tiny_lm(dtype=dtype)
    return lm, locate(lm, PROMPTS, "gradient").select(0.1)


def rows(lm: LanguageModel) -> list[dict[str, list[int]]]:
    ids = torch.randint(0, lm.model.config.vocab_size, (4 * STEPS, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * 12} for row in ids.tolist()]


def trainer(lm: LanguageModel, folder: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=options.pop("max_steps", STEPS),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=10,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **options,
    )
    return Trainer(lm.model, arguments, train_dataset=rows(lm), callbacks=list(callbacks))


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone().view(torch.int16 if value.dtype == torch.bfloat16 else torch.int32).flatten()
        for name, value in model.named_parameters()
    }


def changed(before: dict[str, torch.Tensor], model: nn.Module, region: Region) -> tuple[int, float]:
    """How many protected entries changed, and which share of the others."""
    inside = outside = total = 0
    for name, after in bits(model).items():
        differs = after != before[name]
        protected = torch.zeros_like(differs)
        if name in region.indices:
            protected[region.indices[name].long()] = True
        inside += int((differs & protected).sum())
        outside += int((differs & ~protected).sum())
        total += int((~protected).sum())
    return inside, outside / total


class Gradients(TrainerCallback):
    """What does not work: zero the gradients of the region instead."""

    def __init__(self, region: Region) -> None:
        self.region = region

    def on_pre_optimizer_step(self, *_: Any, **named: Any) -> None:
        for name, parameter in named["model"].named_parameters():
            if name in self.region.indices:
                parameter.grad.view(-1)[self.region.indices[name].long()] = 0


class TestTrainer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_keeps_the_bits(self, dtype: torch.dtype, tmp_path: Path) -> None:
        lm, region = world(dtype)
        before = bits(lm.model)
        safety = SafetyPreserving(region)
        trainer(lm, tmp_path, safety).train()
        inside, outside = changed(before, lm.model, region)
        assert inside == 0
        assert outside > 0.9
        safety.verify()
        assert safety._protection is not None
        assert safety._protection.restored == 1 + STEPS  # when training began, and once behind every step

    def test_zero_gradients_would_not_do(self, tmp_path: Path) -> None:
        lm, region = world()
        before = bits(lm.model)
        trainer(lm, tmp_path, Gradients(region)).train()
        inside, _ = changed(before, lm.model, region)
        assert inside > 0.9 * len(region)

    def test_resumes_with_the_values_of_the_first_model(self, tmp_path: Path) -> None:
        lm, region = world()
        before = bits(lm.model)
        trainer(lm, tmp_path, SafetyPreserving(region), max_steps=10).train()
        halfway = tiny_lm()
        trainer(halfway, tmp_path, SafetyPreserving(region)).train(resume_from_checkpoint=True)
        inside, outside = changed(before, halfway.model, region)
        assert inside == 0
        assert outside > 0.9

    def test_a_checkpoint_that_was_not_protected_is_mended(self, tmp_path: Path) -> None:
        lm, region = world()
        before = bits(lm.model)
        trainer(lm, tmp_path, max_steps=10).train()
        halfway = tiny_lm()
        trainer(halfway, tmp_path, SafetyPreserving(region)).train(resume_from_checkpoint=True)
        assert changed(before, halfway.model, region)[0] == 0

    def test_float32_training_of_a_bfloat16_model(self, tmp_path: Path) -> None:
        lm, region = world(torch.bfloat16)
        wide = LanguageModel(lm.model.float(), lm.tokenizer, "wide")
        before = bits(wide.model)
        trainer(wide, tmp_path, SafetyPreserving(region)).train()
        assert changed(before, wide.model, region)[0] == 0


class Meddler(TrainerCallback):
    """Removes what the protection is attached with, in the middle of training."""

    def on_step_begin(self, _: Any, state: Any, __: Any, **named: Any) -> None:
        if state.global_step == 3:
            named["optimizer"].optimizer._optimizer_step_post_hooks.clear()


class TestRefusals:
    def test_a_hook_that_was_removed(self, tmp_path: Path) -> None:
        lm, region = world()
        with pytest.raises(ProtectionError, match="Step 4 was made by an optimizer"):
            trainer(lm, tmp_path, Meddler(), SafetyPreserving(region)).train()

    def test_another_model(self, tmp_path: Path) -> None:
        _, region = world()
        with pytest.raises(RegionError, match="holds other values"):
            trainer(tiny_lm(seed=1), tmp_path, SafetyPreserving(region))
        with pytest.raises(RegionError, match="has no parameter"):
            trainer(tiny_lm("gpt2"), tmp_path, SafetyPreserving(region))

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_an_adapter(self, tmp_path: Path) -> None:
        lm, region = world()
        adapted = LanguageModel(get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"])), lm.tokenizer, "lora")
        with pytest.raises(RegionError, match="not an adapter around it"):
            trainer(adapted, tmp_path, SafetyPreserving(region))

    def test_frozen_weights(self) -> None:
        lm, region = world()
        safety = SafetyPreserving(region)
        head = torch.optim.SGD(lm.model.get_input_embeddings().parameters(), lr=0.1)
        with pytest.raises(ProtectionError, match="nothing would be protected"):
            safety.protect(lm.model, head)

    def test_nothing_yet(self) -> None:
        with pytest.raises(ProtectionError, match="Nothing is protected yet"):
            SafetyPreserving(world()[1]).verify()


class TestLoop:
    @pytest.mark.parametrize(
        "kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.Adafactor]
    )
    def test_any_optimizer(self, kind: type[torch.optim.Optimizer]) -> None:
        lm, region = world()
        before = bits(lm.model)
        optimizer = kind(lm.model.parameters(), lr=1e-2, weight_decay=0.1)
        safety = SafetyPreserving(region)
        safety.protect(lm.model, optimizer)
        for row in rows(lm)[:5]:
            ids = torch.tensor([row["input_ids"]])
            lm.model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        safety.verify()
        inside, outside = changed(before, lm.model, region)
        assert inside == 0
        assert outside > 0.5

    def test_one_optimizer_for_each_parameter(self) -> None:
        """Steps within the backward pass."""
        lm, region = world()
        before = bits(lm.model)
        optimizers = [torch.optim.SGD([value], lr=0.1, weight_decay=0.1) for value in lm.model.parameters()]
        trained = {id(group["params"][0]): one for one in optimizers for group in one.param_groups}
        own = [trained[id(value)] for name, value in lm.model.named_parameters() if name in region.indices]
        safety = SafetyPreserving(region)
        safety.protect(lm.model, *own)
        for value in lm.model.parameters():
            value.register_post_accumulate_grad_hook(lambda value: trained[id(value)].step())
        ids = torch.tensor([rows(lm)[0]["input_ids"]])
        lm.model(input_ids=ids, labels=ids).loss.backward()
        assert changed(before, lm.model, region)[0] == 0

    def test_a_change_behind_its_back_is_found(self) -> None:
        lm, region = world()
        safety = SafetyPreserving(region)
        safety.protect(lm.model, torch.optim.SGD(lm.model.parameters()))
        name, index = next(iter(region.indices.items()))
        with torch.no_grad():
            lm.model.get_parameter(name).view(-1)[index[:2].long()] *= -1
        with pytest.raises(ProtectionError, match=f"2 protected weights changed .{name}"):
            safety.verify()
