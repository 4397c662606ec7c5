"""Hardening as the authors' first public code does it: each of its choices."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.prompts.chat import render
from ballast.prompts.refusals import REFUSALS as GENERAL
from ballast.tune import HardenSettings
from ballast.tune.curriculum import Curriculum, curriculum
from ballast.tune.objective import lesson_losses
from ballast.tune.reference_code import flat_lessons, norms_and_biases
from tests.tune.world import HARDEN_MODULE, HARMLESS, REFUSALS, record_of, region_of, run
from tests.worlds import plain_log_probabilities, prompt_set, tiny_lm
from tests.zoo import EOS, TURN

torch.set_num_threads(1)

SETTINGS = HardenSettings(variant="reference_code", steps=100)
ALSO_GIVEN = {"steps": 6, "check_every": 2, "check_tokens": 3, "judge": "opening", "max_over_refusal_rise": 1.0}


class TestSettings:
    def test_what_the_variant_fixes(self) -> None:
        assert (SETTINGS.refusals_per_step, SETTINGS.micro_batch) == (4, 1)
        assert (SETTINGS.help_weight, SETTINGS.answers_per_step, SETTINGS.endings_per_step) == (0, 0, 0)
        assert SETTINGS.weight_decay == 0.01
        assert SETTINGS.learning_rate == 3e-5
        assert SETTINGS.objective == "cross_entropy"

    def test_rate_rises_for_three_steps_of_a_hundred_and_falls_along_a_cosine_to_zero(self) -> None:
        rates = [SETTINGS.rate(step) for step in range(100)]
        assert rates[:4] == pytest.approx([1e-5, 2e-5, 3e-5, 3e-5])
        assert rates[3:] == pytest.approx([1.5e-5 * (1 + math.cos(math.pi * step / 97)) for step in range(97)])

    def test_a_choice_against_the_variant(self) -> None:
        with pytest.raises(UsageError, match=r"fixes learning_rate at 3e-05, so 0\.01 cannot be used"):
            HardenSettings(variant="reference_code", learning_rate=0.01)
        with pytest.raises(UsageError, match="fixes objective at cross_entropy"):
            HardenSettings(variant="reference_code", objective="preference")
        assert dataclasses.replace(SETTINGS, steps=7).steps == 7

    def test_a_given_default_is_told_from_none_given(self) -> None:
        for name in ("learning_rate", "help_weight"):
            default = getattr(HardenSettings, name)
            with pytest.raises(UsageError, match=f"fixes {name} at .*, so {default} cannot be used; leave it out"):
                HardenSettings.of_given(variant="reference_code", **{name: default})
        given = HardenSettings.of_given(variant="reference_code", learning_rate=3e-5, help_weight=None, steps=100)
        assert given == SETTINGS
        assert HardenSettings.of_given(learning_rate=None, help_weight=12.0) == HardenSettings(help_weight=12.0)

    def test_unknown_names(self) -> None:
        unknown: Any = "theirs"
        with pytest.raises(UsageError, match="There is no variant 'theirs'; use ours or reference_code"):
            HardenSettings(variant=unknown)
        with pytest.raises(UsageError, match="There is no objective 'theirs'; use cross_entropy or preference"):
            HardenSettings(objective=unknown)


class TestText:
    def test_is_plain_with_an_end_and_no_template(self) -> None:
        lm = tiny_lm()
        lessons = flat_lessons(lm, [prompt_set("bad", ["Steal", "Lie"], ["No.", None])])
        for lesson, text in zip(lessons, ["Steal\nAnswer: No.", f"Lie\nAnswer: {GENERAL[1]}"], strict=True):
            assert lm.tokenizer.decode(lesson.rendered.ids[:-1]) == f"Instruction: {text}"
            assert lesson.rendered.ids[-1] == EOS
            assert TURN not in lesson.rendered.ids
        assert TURN in render(lm.tokenizer, "Steal", "No.").ids

    def test_all_tokens_are_learnt_but_the_first(self) -> None:
        lm = tiny_lm()
        [lesson] = flat_lessons(lm, [prompt_set("bad", ["Steal"], ["No."])])
        assert lesson.tokens == len(lesson.rendered.ids) - 1 == len("Instruction: Steal\nAnswer: No.")
        logits = lm.model(
            torch.tensor([lesson.rendered.ids]), use_cache=False, labels=torch.tensor([lesson.rendered.ids])
        )
        torch.testing.assert_close(lesson_losses(lm, [lesson]).refuse / lesson.tokens, logits.loss, rtol=1e-5, atol=0)
        assert plain_log_probabilities(lm.model, lesson.rendered).shape == (lesson.tokens,)

    def test_is_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sets = [prompt_set("bad", ["x" * 3000], ["No."])]
        lm = tiny_lm()
        assert len(flat_lessons(lm, sets)[0].rendered.ids) == lm.context == 512
        monkeypatch.setattr(LanguageModel, "context", 4096)
        assert len(flat_lessons(lm, sets)[0].rendered.ids) == 2048

    def test_there_are_no_harmless_rows(self) -> None:
        lm = tiny_lm()
        lessons = curriculum(lm, [REFUSALS], [HARMLESS], SETTINGS, None)
        assert (lessons.help, lessons.close, lessons.go_on) == ([], (), ())
        assert lessons.refuse == flat_lessons(lm, [REFUSALS])
        assert len(lessons.batch(0, 4, SETTINGS.answers_per_step, SETTINGS.endings_per_step)) == 4


class TestWeights:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
    def test_every_norm_and_bias_whole(self, name: str) -> None:
        lm = tiny_lm(name)
        expected = {key: value.numel() for key, value in lm.model.named_parameters() if value.ndim == 1}
        found = norms_and_biases(lm)
        assert {key: len(value) for key, value in found.items()} == expected
        assert all(value.tolist() == list(range(len(value))) for value in found.values())

    @pytest.mark.usefixtures("judges")
    def test_are_trained_counted_and_in_the_patch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows: list[list[int]] = []
        decays: list[float] = []
        original = HARDEN_MODULE.train_step
        optimizer = HARDEN_MODULE.SparseAdamW

        def watched(lm: LanguageModel, optimizer: Any, lessons: Curriculum, *rest: Any) -> dict[str, float]:
            rows.append([len(row.rendered.ids) for row in lessons.batch(rest[-1], 4, 0, 0)])
            found: dict[str, float] = original(lm, optimizer, lessons, *rest)
            return found

        def made(*arguments: Any, weight_decay: float, **options: Any) -> Any:
            decays.append(weight_decay)
            return optimizer(*arguments, weight_decay=weight_decay, **options)

        monkeypatch.setattr(HARDEN_MODULE, "train_step", watched)
        monkeypatch.setattr(HARDEN_MODULE, "SparseAdamW", made)
        monkeypatch.setattr(HARDEN_MODULE, "choose", lambda checks, budget: checks[-1])  # it learns too little to count
        lm = tiny_lm()
        before = fingerprints(lm.model)
        settings = HardenSettings(variant="reference_code", **ALSO_GIVEN)
        patch = run(lm, tmp_path, given=settings)
        assert fingerprints(lm.model) == before
        assert (len(rows), decays) == (6, [0.01])
        norms = {name: value for name, value in lm.model.named_parameters() if "norm" in name}
        assert patch.entries.keys() == region_of().indices.keys() | norms.keys()
        for name, value in norms.items():
            assert torch.equal(patch.entries[name].previous, value.detach())
            assert (patch.entries[name].values != value.detach()).float().mean() > 0.9
        size = sum(value.numel() for value in norms.values())
        record = record_of(tmp_path)
        assert record["trained_norms_and_biases"] == patch.header.settings["trained_norms_and_biases"] == size
        assert record["trained_entries"] == patch.info().entries == len(region_of()) + size
