"""The weights of a region, or of a method's scores, that a probe moves most."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ballast.errors import UsageError
from ballast.locate import locate
from ballast.locate.scores import WeightScores
from ballast.models import LanguageModel, open_model
from ballast.models.fingerprint import fingerprints
from ballast.regions import Region
from ballast.tune import drifting, finetune
from ballast.tune.finetune_log import Log
from tests.tune.finetune_world import HARMFUL, SETTINGS, TASK, Stop, region_of, stopping_at
from tests.tune.test_safety_preserving import bits, changed
from tests.worlds import tiny_lm

torch.set_num_threads(1)


def moved(lm: LanguageModel) -> LanguageModel:
    after = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in after.parameters():
            value += torch.randn(value.shape, generator=generator)
    return LanguageModel(after, lm.tokenizer, lm.source)


def places(region: Region) -> set[tuple[str, int]]:
    return {(name, index) for name, indices in region.indices.items() for index in indices.tolist()}


def test_of_a_region_by_brute_force() -> None:
    lm = tiny_lm()
    region, after = region_of(lm), moved(lm)
    found = drifting(region, lm, after, 0.25)
    distance = {
        (name, index): abs(float(after.weight(name).flatten()[index] - lm.weight(name).flatten()[index]))
        for name, index in places(region)
    }
    ranked = sorted(distance, key=lambda place: -distance[place])
    assert places(found) == set(ranked[: len(region) // 4])
    assert found.metadata.parents == (region.region_id,)
    assert found.metadata.settings["drifting"] == 0.25


def test_of_scores_by_brute_force() -> None:
    lm = tiny_lm()
    scores, after = locate(lm, HARMFUL, "gradient"), moved(lm)
    assert isinstance(scores, WeightScores)
    found = drifting(scores, lm, after, 0.02)
    product = {
        (name, index): value
        for name, values in scores.values.items()
        for index, value in enumerate((values * (after.weight(name) - lm.weight(name)).abs()).flatten().tolist())
    }
    ranked = sorted(product, key=lambda place: -product[place])
    assert places(found) == set(ranked[: len(product) // 50])
    assert places(found) != places(scores.select(0.02))


def test_fine_tuning_protects_them_alone(tmp_path: Path) -> None:
    lm = tiny_lm()
    region, before = region_of(lm), bits(lm.model)
    settings = dataclasses.replace(SETTINGS, drifting=0.5, probe_steps=4)
    tuned = open_model(finetune(lm, TASK, protect=region, out=tmp_path, settings=settings))
    kept = Region.load(tmp_path / "protected.safetensors")
    assert len(kept) == len(region) // 2
    assert places(kept) < places(region)
    assert changed(before, tuned.model, kept)[0] == 0
    assert changed(before, tuned.model, region - kept)[0] > 0.9 * (len(region) - len(kept))
    assert not (tmp_path / "probe").exists()
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest["region"] == region.region_id
    assert (manifest["settings"]["drifting"], manifest["settings"]["probe_steps"]) == (0.5, 4)


@pytest.mark.parametrize("at", [3, 7])  # within the probe and behind it
def test_continues_with_the_same_bits(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    region = region_of(lm)
    settings = dataclasses.replace(SETTINGS, drifting=0.5, probe_steps=6)

    def run(folder: str) -> dict[str, str]:
        out = finetune(lm, TASK, protect=region, out=tmp_path / folder, settings=settings)
        return fingerprints(open_model(out).model)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "on_log", stopping_at(at))
        with pytest.raises(Stop):
            run("killed")
    assert run("killed") == run("whole")


def test_bad_input(tmp_path: Path) -> None:
    lm = tiny_lm()
    settings = dataclasses.replace(SETTINGS, drifting=0.5)
    with pytest.raises(UsageError, match="give one to protect"):
        finetune(lm, TASK, protect=None, out=tmp_path, settings=settings)
    with pytest.raises(UsageError, match="is none; give a larger one"):
        drifting(region_of(lm), lm, moved(lm), 1e-9)
    with pytest.raises(UsageError, match=r"drifting is 1\.5"):
        dataclasses.replace(SETTINGS, drifting=1.5)
