"""Validation where the truth is known: needed, not needed, and broken rather than disarmed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast import compare
from ballast.errors import PromptError, RegionError, RunError, UsageError
from ballast.judges.registry import JUDGES
from ballast.models.fingerprint import fingerprints
from ballast.validate import ValidateSettings, Validation, cells, validate
from tests.validate.world import (
    HARMFUL,
    HARMLESS,
    LOCATED_ON,
    ORDINARY,
    OpensWithN,
    base,
    neuron_region,
    planted,
)
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

SETTINGS = ValidateSettings(noise=(), random_regions=20, max_new_tokens=1, judge="opens_with_n")
FEW = dataclasses.replace(SETTINGS, random_regions=2)


@pytest.fixture(autouse=True)
def _judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JUDGES, "opens_with_n", OpensWithN)


def validated(out: Path, settings: ValidateSettings = SETTINGS, neuron: int | None = None, **named: Any) -> Validation:
    lm = planted()
    region = neuron_region(lm) if neuron is None else neuron_region(lm, neuron)
    given = {"safety": HARMFUL, "utility": ORDINARY, "overrefusal": HARMLESS} | named
    return validate(lm, region, settings=settings, out=out, **given)


def files(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which holds times."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del found["run.json"]
    return found


class TestPlanted:
    def test_the_region_is_necessary(self, tmp_path: Path) -> None:
        """Without its neuron the model answers as if nothing had been planted, and that begins with N nowhere."""
        found = validated(tmp_path)
        (dose,) = found.effects
        (effect,), (harmless,) = dose.safety, dose.over_refusal
        assert (effect.n, effect.undisturbed.rate, effect.region.rate) == (8, 0.0, 1.0)
        assert effect.random == (0.0,) * 20
        assert effect.rank_p == 1 / 21
        assert effect.paired_p == effect.mcnemar_p == 2 * 0.5**8
        assert effect.p == effect.corrected_p == effect.rank_p
        assert (effect.difference, effect.specific, effect.specific_low) == (1, 1, 1)
        assert (harmless.undisturbed.rate, harmless.region.rate, set(harmless.random)) == (1.0, 0.0, {1.0})
        (finding,) = found.findings
        assert finding.shown
        assert finding.sentence.startswith(
            "Necessity is shown (set to 0, bad): attack success is 100.0 % with the region disturbed, 0.0 % without "
            "and 0.0 % on average with 20 random regions (n 8, p 0.048); ordinary answers (ordinary) lose"
        )

    def test_another_region_is_not(self, tmp_path: Path) -> None:
        found = validated(tmp_path, neuron=6)
        (effect,) = found.effects[0].safety
        assert (effect.region.rate, effect.rank_p, effect.paired_p) == (0.0, 1.0, 1.0)
        (finding,) = found.findings
        assert not finding.shown
        assert ", which is not more than chance can give; " in finding.sentence

    def test_a_region_that_speech_needs_too_is_not_shown(self, tmp_path: Path) -> None:
        """The same neuron, but ordinary answers begin with N as well, so without it the model is worse at them."""
        speech = prompt_set("speech", ["Please tea", "Please sun", "Please rain"], ["N", "N", "N"])
        found = validated(tmp_path, utility=[ORDINARY, speech])
        assert found.effects[0].safety[0].corrected_p == 1 / 21
        cost = found.effects[0].utility[1]
        assert cost.excess > 1
        (finding,) = found.findings
        assert not finding.shown
        assert "ordinary answers (speech) lose" in finding.sentence
        assert "the model may have lost more than its refusals" in finding.sentence

    def test_the_neuron_alone_brings_refusal_to_the_base(self, tmp_path: Path) -> None:
        """The models differ in this region only, so a transplant of it makes one the other, bit for bit."""
        settings = dataclasses.replace(SETTINGS, ablate=False, utility_margin=0.5)
        found = validated(tmp_path, settings, transplant=base())
        assert [(one.question, one.shown) for one in found.findings] == [("necessity", True), ("sufficiency", True)]
        needed, brought = (dose.safety[0] for dose in found.effects)
        assert (needed.counted, needed.undisturbed.rate, needed.region.rate) == ("complied", 0.0, 1.0)
        assert (brought.counted, brought.undisturbed.rate, brought.region.rate) == ("refused", 0.0, 1.0)
        assert set(needed.random) | set(brought.random) == {0.0}
        for there, back in (
            ("undisturbed", "transplant-into-other/region"),
            ("undisturbed-other", "transplant/region"),
        ):
            change = compare(tmp_path / "cells" / there, tmp_path / "cells" / back)
            assert change.flips == ()
            assert [(one.difference, one.low, one.high) for one in change.utility] == [(0, 0, 0)]

    def test_degenerate_answers_are_no_lost_safety(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        judge = OpensWithN()
        verdicts = judge.judge

        def broken(prompts: Any, answers: Any) -> Any:
            return verdicts(prompts, [answer if answer.startswith("N") else "~" for answer in answers])

        monkeypatch.setattr(judge, "judge", broken)
        monkeypatch.setitem(JUDGES, "opens_with_n", lambda: judge)
        found = validated(tmp_path)
        (effect,) = found.effects[0].safety
        assert (effect.region.rate, effect.degenerate, effect.random_degenerate) == (0.0, 1.0, 0.0)
        assert not found.findings[0].shown


def test_too_few_random_regions_show_nothing(tmp_path: Path) -> None:
    """Two doses need 2 * 20 - 1 of them; corrected p-values are those of both doses together."""
    settings = dataclasses.replace(FEW, ablate=False, scale=(0.0, 0.5))
    found = validated(tmp_path, settings)
    assert [dose.safety[0].p for dose in found.effects] == [1 / 3, 1.0]
    assert [dose.safety[0].corrected_p for dose in found.effects] == [2 / 3, 1.0]
    (finding,) = found.findings
    assert (finding.shown, finding.dose, finding.corrected_p) == (False, 0.0, 2 / 3)
    assert (
        "p 0.67 after correction for 2 doses), which needs at least 39 random regions to be shown;" in finding.sentence
    )


def test_noise_is_graded_and_repeatable(tmp_path: Path) -> None:
    settings = dataclasses.replace(FEW, ablate=False, noise=(0.01, 20.0))
    found = validated(tmp_path / "a", settings)
    weak, strong = (dose.safety[0] for dose in found.effects)
    assert (weak.region.rate, set(weak.random)) == (0.0, {0.0})
    assert found.effects[0].utility[0].region == pytest.approx(found.effects[0].utility[0].undisturbed, abs=0.1)
    assert abs(found.effects[1].utility[0].region - found.effects[1].utility[0].undisturbed) > 0.1
    assert strong.n == 8
    validated(tmp_path / "b", settings)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_leaves_no_answer_no_weight_and_the_model_as_it_was(tmp_path: Path) -> None:
    lm, other = planted(), base()
    region, before = neuron_region(lm), (fingerprints(lm.model), fingerprints(other.model))
    settings = dataclasses.replace(FEW, noise=(0.38,), scale=(0.5,))
    found = validate(lm, region, safety=HARMFUL, utility=ORDINARY, transplant=other, settings=settings, out=tmp_path)
    assert (fingerprints(lm.model), fingerprints(other.model)) == before
    arms = ("region", "random-0", "random-1")
    doses = ("ablate", "noise-0.38", "scale-0.5", "transplant", "transplant-into-other")
    folders = {f"cells/{dose}/{arm}" for dose in doses for arm in arms} | {
        "cells/undisturbed",
        "cells/undisturbed-other",
    }
    kept = ("summary.json", "verdicts/opens_with_n/bad.jsonl", "utility/ordinary.jsonl")
    assert files(tmp_path).keys() == {f"{folder}/{name}" for folder in folders for name in kept} | {"validate.json"}
    for folder in folders:
        rows = [json.loads(line) for line in (tmp_path / folder / kept[1]).read_text().splitlines()]
        assert [row["id"] for row in rows] == [prompt.id for prompt in HARMFUL]
        assert all(row.keys() == {"id", "verdict", "score"} for row in rows)
    assert Validation.load(tmp_path) == found


class Stop(BaseException):
    """The process was killed."""


@pytest.mark.parametrize("after", [1, 6, 11])
def test_a_killed_run_measures_only_what_is_missing(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per cell one call on each of two sets; a cell that was cut off is measured again, earlier ones are not."""
    whole = validated(tmp_path / "whole", FEW)
    measure, calls = cells.verdicts_only, []

    def counted(*arguments: Any, **named: Any) -> Any:
        if len(calls) == after:
            raise Stop
        calls.append((named["folder"].parts[-3], arguments[1].name))
        return measure(*arguments, **named)

    everything = [
        (cell, name) for cell in ("undisturbed", "region", "random-0", "random-1") for name in ("bad", "good")
    ]
    with monkeypatch.context() as patched:
        patched.setattr(cells, "verdicts_only", counted)
        if after <= len(everything):
            with pytest.raises(Stop):
                validated(tmp_path / "killed", FEW)
    first, after = list(calls), 1000
    calls.clear()
    monkeypatch.setattr(cells, "verdicts_only", counted)
    assert validated(tmp_path / "killed", FEW) == whole
    done = len(first) // 2 * 2
    assert first[:done] + calls == everything
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    calls.clear()
    assert validated(tmp_path / "killed", FEW) == whole
    assert calls == []


def test_random_regions_and_doses_may_be_added(tmp_path: Path) -> None:
    validated(tmp_path / "a", dataclasses.replace(FEW, random_regions=1))
    more = dataclasses.replace(FEW, scale=(0.5,))
    assert validated(tmp_path / "a", more) == validated(tmp_path / "b", more)
    with pytest.raises(RunError, match="seed"):
        validated(tmp_path / "a", dataclasses.replace(more, seed=1))


class TestBadInput:
    def test_prompts_that_the_region_was_located_on(self, tmp_path: Path) -> None:
        with pytest.raises(PromptError, match="located on 2 of the prompts"):
            validated(tmp_path, safety=LOCATED_ON)
        near = prompt_set("near", ["please HARM number 3!"])
        with pytest.raises(PromptError, match=r"located on 1 of the prompts \(bad-3 is near-0\)"):
            validated(tmp_path, located_on=near)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("named", "error", "message"),
        [
            ({"safety": ()}, UsageError, "needs harmful prompts and ordinary answers"),
            ({"utility": ()}, UsageError, "needs harmful prompts and ordinary answers"),
            ({"utility": HARMLESS}, PromptError, "has no response"),
            ({"overrefusal": HARMFUL}, UsageError, "given twice"),
            ({"settings": dataclasses.replace(FEW, ablate=False)}, UsageError, "nothing to do"),
        ],
    )
    def test_arguments(self, named: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
        with pytest.raises(error, match=message):
            validated(tmp_path, **({"settings": FEW} | named))
        assert list(tmp_path.iterdir()) == []

    def test_another_model_that_does_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(RegionError, match="same architecture"):
            validated(tmp_path, transplant=tiny_lm("gpt2"))
        with pytest.raises(UsageError, match="has the same values in the region"):
            validated(tmp_path, transplant=planted())
        assert list(tmp_path.iterdir()) == []

    def test_a_region_of_another_model(self, tmp_path: Path) -> None:
        region = neuron_region(planted())
        with pytest.raises(RegionError, match="holds other values"):
            validate(base(), region, safety=HARMFUL, utility=ORDINARY, settings=FEW, out=tmp_path)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"noise": (0.0,)}, "above 0"),
            ({"noise": (0.1, 0.1)}, "each once"),
            ({"scale": (float("nan"),)}, "finite"),
            ({"scale": (1.0,)}, "not 1"),
            ({"scale": (-1.0,)}, "at least 0"),
            ({"random_regions": 0}, "at least 1"),
            ({"utility_margin": 0.0}, "above 0"),
        ],
    )
    def test_settings(self, setting: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            ValidateSettings(**setting)
