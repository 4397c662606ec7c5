"""Hardening with several regions and weights, of which the select prompts choose one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import NumericalError, RunError, UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.patches import Patch
from ballast.runs import RunDirectory, read_json
from ballast.tune import HardenSettings, harden_over
from ballast.tune.sweep import _best
from tests.tune.world import (
    HARMLESS,
    REFUSALS,
    SELECT_HARMFUL,
    SELECT_HARMLESS,
    SETTINGS,
    Stop,
    contents,
    region_of,
    run,
    steps_taken,
    stop_at,
)
from tests.worlds import tiny_lm

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("judges")

REGIONS = [region_of(), region_of().sample_like(seed=0)]
WEIGHTS = [0.5, 50.0]


def sweep(lm: LanguageModel, out: Path, weights: list[float] = WEIGHTS, **changes: Any) -> Patch:
    return harden_over(
        lm,
        REGIONS,
        weights,
        refusals=REFUSALS,
        harmless=[HARMLESS],
        select_harmful=SELECT_HARMFUL,
        select_harmless=[SELECT_HARMLESS],
        settings=dataclasses.replace(SETTINGS, **changes),
        out=out,
    )


def table(folder: Path) -> list[dict[str, Any]]:
    """The rows without what a clock and a folder's name say."""
    return [
        {key: str(value).replace(str(folder), "") for key, value in row.items() if key != "seconds"}
        for row in read_json(folder / "sweep.json")["rows"]
    ]


def row(folder: str, attack_success_rate: float, over_refusal: float) -> dict[str, Any]:
    def check(step: int, *rates: float) -> dict[str, Any]:
        return {**dict(zip(("attack_success_rate", "over_refusal"), rates, strict=True)), "step": step} | {
            "n_harmful": 10,
            "n_harmless": 10,
        }

    return {"folder": folder, "untuned": check(0, 0.9, 0.1), "kept": check(5, attack_success_rate, over_refusal)}


class TestChoice:
    FAILED = {"folder": "1", "failed": "It broke."}  # noqa: RUF012

    def test_follows_the_rule_of_a_single_run(self) -> None:
        rows = [self.FAILED, row("2", 0.5, 0.1), row("3", 0.2, 0.15), row("4", 0.0, 0.3), row("5", 0.2, 0.12)]
        assert _best(rows, 0.0) == "2"
        assert _best(rows, 0.05) == "5"
        assert _best(rows, 0.2) == "4"
        assert _best([row("1", 0.2, 0.5), row("2", 0.3, 0.4)], 0.05) == "2"  # the smallest rise

    def test_of_equals_the_first(self) -> None:
        assert _best([row("1", 0.2, 0.1), row("2", 0.2, 0.1)], 0.0) == "1"

    def test_of_nothing(self) -> None:
        with pytest.raises(NumericalError, match=r"No combination can be kept; the first one: It broke\."):
            _best([self.FAILED], 0.05)


class TestSweep:
    def test_rows_are_those_of_single_runs_and_the_best_patch_is_kept(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        before = fingerprints(lm.model)
        patch = sweep(lm, tmp_path / "over")
        assert fingerprints(lm.model) == before
        record = read_json(tmp_path / "over" / "sweep.json")
        pairs = [(region, weight) for region in REGIONS for weight in WEIGHTS]
        kept = {}
        for found, (region, weight) in zip(record["rows"], pairs, strict=True):
            assert (found["entries"], found["help_weight"]) == (len(region), weight)
            assert found["share"] == region.density()
            alone = tmp_path / f"alone{found['folder']}"
            if "failed" in found:
                with pytest.raises(NumericalError) as raised:
                    run(tiny_lm(), alone, region, help_weight=weight)
                assert found["failed"] == str(raised.value)
                continue
            single = run(tiny_lm(), alone, region, help_weight=weight)
            expected = read_json(alone / "harden.json")
            assert found["kept"]["step"] == expected["chosen_step"]
            assert found["kept"] in expected["selection"]
            assert found["untuned"] == expected["selection"][0]
            kept[found["folder"]] = single
        assert 0 < len(kept) < 4, "some combinations work here and some do not"
        assert record["chosen"] == _best(record["rows"], SETTINGS.max_over_refusal_rise)
        assert contents(patch) == contents(kept[record["chosen"]])
        assert contents(Patch.load(tmp_path / "over" / "patch.safetensors")) == contents(patch)

    @pytest.mark.parametrize("step", [2, 16])
    def test_killed_and_resumed(self, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = contents(sweep(tiny_lm(), tmp_path / "undisturbed"))
        with monkeypatch.context() as patched:
            stop_at(step, "train_step", patched)
            with pytest.raises(Stop):
                sweep(tiny_lm(), tmp_path / "killed")
        assert contents(sweep(tiny_lm(), tmp_path / "killed")) == expected
        assert table(tmp_path / "killed") == table(tmp_path / "undisturbed")
        assert RunDirectory.state_of(tmp_path / "killed") == "done"
        done = steps_taken(monkeypatch)
        assert contents(sweep(tiny_lm(), tmp_path / "killed")) == expected
        assert done == []

    def test_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="There is nothing to choose from"):
            sweep(tiny_lm(), tmp_path, weights=[])
        sweep(tiny_lm(), tmp_path, weights=[0.5])
        with pytest.raises(RunError, match="other settings"):
            sweep(tiny_lm(), tmp_path, weights=[1.5])

    def test_with_the_variant_the_weight_is_the_one_that_was_used(self, tmp_path: Path) -> None:
        asked: dict[str, Any] = {
            "refusals": REFUSALS,
            "harmless": [HARMLESS],
            "select_harmful": SELECT_HARMFUL,
            "select_harmless": [SELECT_HARMLESS],
            "settings": HardenSettings(variant="reference_code", steps=1, judge="complied"),
            "out": tmp_path,
        }
        with pytest.raises(UsageError, match=r"fixes help_weight at 0\.0, so there are no several"):
            harden_over(tiny_lm(), REGIONS, [0.0, 24.0], **asked)
        assert not list(tmp_path.iterdir())
        with pytest.raises(NumericalError, match="No combination"):
            harden_over(tiny_lm(), REGIONS[:1], **asked)
        assert read_json(tmp_path / "run.json")["settings"]["help_weight"] == [0.0]
        assert read_json(tmp_path / "sweep.json")["rows"][0]["help_weight"] == 0.0

    def test_that_nothing_survives(self, tmp_path: Path) -> None:
        for _ in range(2):
            with pytest.raises(NumericalError, match="No combination can be kept; the first one: No step lowered"):
                sweep(tiny_lm(), tmp_path, judge="complied")
        assert all("failed" in found for found in read_json(tmp_path / "sweep.json")["rows"])
        assert not (tmp_path / "patch.safetensors").exists()
