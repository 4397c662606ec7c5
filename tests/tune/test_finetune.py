"""Fine-tuning with a protected region: what is learnt, what stays, what continues."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ballast.errors import NumericalError, PromptError, RunError, UsageError
from ballast.judges import JUDGES
from ballast.locate import locate
from ballast.models import open_model
from ballast.models.fingerprint import fingerprints
from ballast.prompts import PromptSet, load_prompts
from ballast.prompts.chat import Rendered
from ballast.tune import FinetuneSettings, LoraSettings, finetune
from ballast.tune.finetune_log import Log
from ballast.tune.finetune_settings import OPTIONS
from ballast.tune.rows import collated, tokenized, with_refusals
from tests.locate import world
from tests.locate.world import ANSWERED, BENIGN, NORMAL, LetterJudge, deep_lm, written
from tests.tune.finetune_world import SETTINGS, TASK, Stop, losses, region_of, stopping_at
from tests.tune.test_safety_preserving import bits, changed
from tests.worlds import plain_log_probabilities, prompt_set, tiny_lm

torch.set_num_threads(1)


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_the_task_and_keeps_the_region(dtype: torch.dtype, mixed_precision: bool, tmp_path: Path) -> None:
    lm = tiny_lm(dtype=dtype)
    region, before, whole = region_of(lm), bits(lm.model), fingerprints(lm.model)
    settings = FinetuneSettings(
        steps=20, learning_rate=5e-3, batch_size=4, micro_batch=4, mixed_precision=mixed_precision
    )
    checkpoint = finetune(lm, TASK, protect=region, out=tmp_path, settings=settings)
    assert fingerprints(lm.model) == whole
    tuned = open_model(checkpoint)
    assert tuned.model.dtype == dtype
    inside, outside = changed(before, tuned.model, region)
    assert inside == 0
    assert outside > 0.5
    found = losses(tmp_path)
    assert len(found) == 20
    assert found[-1] < 0.5 * found[0]


def test_frozen_safety_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region of layers keeps whole decoder blocks, of what was scored in them (SPPFT, arXiv 2408.17003)."""
    monkeypatch.setitem(JUDGES, "letters", LetterJudge)
    lm = deep_lm()
    found = locate(
        lm,
        world.HARMFUL,
        "safety_layers",
        normal=written(tmp_path / "normal.jsonl", NORMAL),
        benign=written(tmp_path / "benign.jsonl", BENIGN),
        utility=written(tmp_path / "utility.jsonl", list(ANSWERED), list(ANSWERED.values())),
        judge="letters",
        max_new_tokens=4,
    )
    region = found.select(0.4)
    assert region.metadata.granularity == "layer"
    before = bits(lm.model)
    tuned = open_model(finetune(lm, TASK, protect=region, out=tmp_path / "tuned", settings=SETTINGS))
    inside, outside = changed(before, tuned.model, region)
    assert inside == 0
    assert outside > 0.5
    layers = {part.layer for part in lm.parts if part.name in region.indices}
    assert 0 < len(layers) < lm.model.config.num_hidden_layers
    for part in lm.parts.eligible():
        kept = torch.equal(tuned.weight(part.name), lm.weight(part.name))
        assert kept == (part.layer in layers), part.name


def test_without_protection_the_region_moves(tmp_path: Path) -> None:
    lm = tiny_lm()
    region, before = region_of(lm), bits(lm.model)
    inside, _ = changed(
        before, open_model(finetune(lm, TASK, protect=None, out=tmp_path, settings=SETTINGS)).model, region
    )
    assert inside > 0.9 * len(region)


@pytest.mark.parametrize("at", [3, 7, 20])
def test_continues_with_the_same_bits(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    region = region_of(lm)
    expected = fingerprints(
        open_model(finetune(lm, TASK, protect=region, out=tmp_path / "whole", settings=SETTINGS)).model
    )
    with monkeypatch.context() as patched:
        patched.setattr(Log, "on_log", stopping_at(at))
        with pytest.raises(Stop):
            finetune(lm, TASK, protect=region, out=tmp_path / "killed", settings=SETTINGS)
    checkpoint = finetune(lm, TASK, protect=region, out=tmp_path / "killed", settings=SETTINGS)
    assert fingerprints(open_model(checkpoint).model) == expected
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert finetune(lm, TASK, protect=region, out=tmp_path / "killed", settings=SETTINGS) == checkpoint
    with pytest.raises(RunError, match="holds a run with other settings"):
        finetune(lm, TASK, protect=None, out=tmp_path / "killed", settings=SETTINGS)


def test_only_responses_are_learnt() -> None:
    lm = tiny_lm()
    rows = tokenized(lm, TASK, 100)
    batch = collated(rows, lm.pad_id)
    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        learnt = [label for label in labels if label != -100]
        assert learnt == row.ids[row.prompt_length :]


def test_rows_are_cut_to_the_context() -> None:
    lm = tiny_lm("gpt2")
    long = prompt_set("long", ["Count"], ["1 " * lm.context])
    assert [len(row.ids) for row in tokenized(lm, long, 4 * lm.context)] == [lm.context]


def test_a_batch_is_the_same_whatever_the_number_of_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert SETTINGS.arguments(tmp_path, 2, on_cpu=False).train_batch_size == 2


class TestRefusalsMixedIn:
    @pytest.mark.parametrize(("rows", "share", "expected"), [(97, 0.03, 3), (98, 0.03, 4), (4, 0.03, 1), (4, 0.0, 0)])
    def test_their_share(self, rows: int, share: float, expected: int) -> None:
        task, refusals = [Rendered([0], 0)] * rows, [Rendered([number], 0) for number in range(1, 21)]
        mixed = with_refusals(task, refusals, share, seed=0)
        assert mixed[:rows] == task
        assert len(mixed) - rows == expected
        assert all(row in refusals for row in mixed[rows:])

    def test_each_is_drawn_once_before_one_is_drawn_twice(self) -> None:
        refusals = [Rendered([number], 0) for number in range(5)]
        drawn = with_refusals([Rendered([9], 0)] * 7, refusals, 0.5, seed=0)[7:]
        assert len(drawn) == 7
        assert sorted(drawn[:5]) == refusals
        assert drawn == with_refusals([Rendered([9], 0)] * 7, refusals, 0.5, seed=0)[7:]
        assert drawn != with_refusals([Rendered([9], 0)] * 7, refusals, 0.5, seed=1)[7:]

    def test_they_are_learnt(self, tmp_path: Path) -> None:
        """Half of the rows are one refusal, and its likelihood rises as it does not without."""
        lm = tiny_lm()
        settings = dataclasses.replace(SETTINGS, mix=0.5, max_length=600)
        kept = open_model(finetune(lm, TASK, protect=None, out=tmp_path / "mixed", settings=settings))
        plain = open_model(finetune(lm, TASK, protect=None, out=tmp_path / "plain", settings=SETTINGS))
        refusals = tokenized(lm, load_prompts("builtin/refusals", limit=4), 600)
        likelihoods = [
            sum(float(plain_log_probabilities(one.model, row).sum().detach()) for row in refusals)
            for one in (kept, plain)
        ]
        assert likelihoods[0] > likelihoods[1]

    def test_they_are_part_of_the_run(self, tmp_path: Path) -> None:
        finetune(tiny_lm(), TASK, protect=None, out=tmp_path, settings=dataclasses.replace(SETTINGS, steps=1, mix=0.2))
        manifest = json.loads((tmp_path / "run.json").read_text())
        assert set(manifest["prompt_sets"]) == {"task", "builtin/refusals"}
        assert manifest["settings"]["mix"] == 0.2

    def test_a_run_from_before_the_options_existed_is_still_the_same(self, tmp_path: Path) -> None:
        settings = dataclasses.replace(SETTINGS, steps=1)
        out = finetune(tiny_lm(), TASK, protect=None, out=tmp_path, settings=settings)
        manifest = json.loads((tmp_path / "run.json").read_text())
        assert not manifest["settings"].keys() & set(OPTIONS)
        old = {key: value for key, value in manifest.items() if key not in ("anchor", "lora")}
        (tmp_path / "run.json").write_text(json.dumps(old))
        assert finetune(tiny_lm(), TASK, protect=None, out=tmp_path, settings=settings) == out
        with pytest.raises(RunError, match="lora: only now"):
            finetune(tiny_lm(), TASK, protect=None, lora=LoraSettings(), out=tmp_path, settings=settings)


class Broken:
    """Logits that are not finite from some pass on."""

    def __init__(self, passes: int) -> None:
        self.passes = passes

    def __deepcopy__(self, _: Any) -> Broken:
        return self

    def __call__(self, module: Any, arguments: Any, output: Any) -> Any:
        self.passes -= 1
        if self.passes < 0:
            output.loss = output.loss * float("nan")
        return output


class TestNotFinite:
    def test_the_last_good_state_is_kept_and_named(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        lm.model.register_forward_hook(Broken(12))
        with pytest.raises(NumericalError, match=r"The loss of step 13 is not finite.*the last good state is .*-10\)"):
            finetune(lm, TASK, protect=None, out=tmp_path, settings=dataclasses.replace(SETTINGS, micro_batch=4))
        kept = load_file(tmp_path / "state" / "checkpoint-10" / "model.safetensors")
        assert all(bool(value.isfinite().all()) for value in kept.values())
        assert len(losses(tmp_path)) == 12

    def test_weights_that_are_not_finite_never_replace_a_state(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The step before a state overflows, which no loss has shown yet."""
        step = torch.optim.AdamW.step

        def overflowing(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
            found = step(self, *arguments, **named)
            state = next(iter(self.state.values()))
            if int(state["step"]) == 10:
                with torch.no_grad():
                    next(iter(self.state)).fill_(float("inf"))
            return found

        monkeypatch.setattr(torch.optim.AdamW, "step", overflowing)
        with pytest.raises(NumericalError, match=r"A weight after step 10 is not finite.*checkpoint-5\)"):
            finetune(tiny_lm(), TASK, protect=None, out=tmp_path, settings=SETTINGS)
        assert [path.name for path in (tmp_path / "state").iterdir()] == ["checkpoint-5"]


class TestBadInput:
    def test_rows_without_responses(self, tmp_path: Path) -> None:
        with pytest.raises(PromptError, match="bare-0 has no response"):
            finetune(tiny_lm(), prompt_set("bare", ["Hi"]), protect=None, out=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_prompts_that_leave_no_room(self) -> None:
        with pytest.raises(PromptError, match="leaves none to its response"):
            tokenized(tiny_lm(), TASK, 8)

    def test_a_loss_that_is_not_finite(self, tmp_path: Path) -> None:
        settings = FinetuneSettings(steps=40, learning_rate=1e8, batch_size=4, micro_batch=4, mixed_precision=False)
        with pytest.raises(NumericalError, match="is not finite; use a lower learning rate"):
            finetune(tiny_lm(), TASK, protect=None, out=tmp_path, settings=settings)
        assert not (tmp_path / "model").exists()

    def test_a_built_in_attack(self, tmp_path: Path) -> None:
        rows = load_prompts("builtin/identity_shift").prompts[3:5]
        with pytest.raises(PromptError, match="which makes a model less safe; measure with it"):
            finetune(tiny_lm(), PromptSet("mine", (*TASK, *rows)), protect=None, out=tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"steps": 0}, "steps is 0"),
            ({"learning_rate": 0.0}, "must be above 0"),
            ({"weight_decay": -1.0}, "must not be negative"),
            ({"warmup": 1.0}, "share of the steps"),
            ({"mix": 1.0}, "share of the rows"),
            ({"batch_size": 3, "micro_batch": 2}, "no whole number of micro-batches"),
        ],
    )
    def test_settings(self, setting: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            FinetuneSettings(**setting)
