"""Safety layers from the prompts to the region: what is scored, chosen and noted, and what an interruption changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import PromptError, RegionError, UsageError
from ballast.judges import JUDGES
from ballast.locate import UnitScores, locate
from ballast.locate.last_states import last_states
from ballast.locate.layers.gap_curve import gap_curve
from ballast.locate.safety_layers import SafetyLayers
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.models.parts import PartMap
from ballast.prompts import load_prompts
from ballast.prompts.chat import render
from ballast.regions import Region
from tests.locate.world import ANSWERED, BENIGN, HARMFUL, LAYERS, NORMAL, LetterJudge, deep_lm, written
from tests.worlds import plain_log_probabilities, same_bits, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

Settings = dict[str, Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return {
        "normal": written(tmp_path / "normal.jsonl", NORMAL),
        "benign": written(tmp_path / "benign.jsonl", BENIGN),
        "utility": written(tmp_path / "utility.jsonl", list(ANSWERED), list(ANSWERED.values())),
        "judge": "letters",
        "max_new_tokens": 4,
    }


def judged_by(judge: LetterJudge, monkeypatch: pytest.MonkeyPatch) -> LetterJudge:
    monkeypatch.setitem(JUDGES, "letters", lambda: judge)
    return judge


def found(lm: LanguageModel, settings: Settings, **more: Any) -> UnitScores:
    checkpoint = more.pop("checkpoint", None)
    scores = locate(lm, HARMFUL, "safety_layers", seed=2, batch_size=4, checkpoint=checkpoint, **{**settings, **more})
    assert isinstance(scores, UnitScores)
    return scores


def chosen(scores: UnitScores) -> list[int]:
    assert scores.chosen is not None
    return [group.layer for group, units in zip(scores.groups, scores.chosen, strict=True) if len(units)]


def values(scores: UnitScores) -> list[float]:
    return torch.cat(scores.values).tolist()


@pytest.fixture(autouse=True)
def judge(monkeypatch: pytest.MonkeyPatch) -> LetterJudge:
    return judged_by(LetterJudge(), monkeypatch)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, settings: Settings, tmp_path: Path) -> None:
    lm = tiny_lm(name)
    before = fingerprints(lm.model)
    scores = found(lm, settings)
    assert fingerprints(lm.model) == before
    layers = lm.model.config.get_text_config().num_hidden_layers
    assert [group.layer for group in scores.groups] == list(range(layers))
    for value in scores.values:
        assert value.shape == (1,)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert value >= 0
    assert values(found(lm, settings)) == values(scores)

    region = scores.select()
    owned = [part for part in lm.parts.eligible() if part.layer in chosen(scores)]
    assert len(region) == sum(part.numel for part in owned) > 0
    assert region.indices.keys() == {part.name for part in owned}
    assert region.metadata.selected_units == {"layer": tuple((layer, -1, 0) for layer in chosen(scores))}
    assert (region.metadata.granularity, region.metadata.units) == ("layer", "units")
    region.save(tmp_path / "region.safetensors")
    assert same_bits(Region.load(tmp_path / "region.safetensors").indices, region.indices)


class TestStageA:
    def test_scores_are_the_increments_of_the_curve(self, settings: Settings, judge: LetterJudge) -> None:
        lm = deep_lm()
        scores = found(lm, settings)
        normal, harmful = (last_states(lm, one, 4) for one in (load_prompts(settings["normal"]), HARMFUL))
        curve = gap_curve(normal, harmful, "angle_of_mean", 2)
        steps = [float(now - before) for before, now in zip([0, *curve.gap[:-1]], curve.gap, strict=True)]
        assert values(scores) == pytest.approx([max(step, 0) for step in steps])
        assert scores.settings["gap"] == pytest.approx(curve.gap.tolist(), abs=1e-4)
        assert scores.settings["gap_low"] == pytest.approx(curve.low.tolist(), abs=1e-4)
        assert scores.settings["gap_high"] == pytest.approx(curve.high.tolist(), abs=1e-4)
        assert scores.settings["first_guess"] == list(curve.first_guess())
        assert chosen(scores) == list(range(*curve.first_guess()))
        assert scores.settings["depends_on"] == "stage_a"
        assert not judge.batches

    def test_a_fraction_takes_the_layers_that_widen_the_gap_most(self, settings: Settings) -> None:
        scores = found(deep_lm(), settings)
        best = sorted(range(LAYERS), key=lambda layer: -values(scores)[layer])[:2]
        region = scores.select(0.4)
        assert region.metadata.selected_units == {"layer": tuple((layer, -1, 0) for layer in sorted(best))}

    def test_the_angle_can_be_averaged(self, settings: Settings) -> None:
        one, other = found(deep_lm(), settings), found(deep_lm(), settings, angle="mean_of_angles")
        assert one.settings["gap"] != other.settings["gap"]

    def test_layers_without_projections_are_noted(self, settings: Settings) -> None:
        lm = deep_lm()
        lm.parts = PartMap([part for part in lm.parts if part.layer != 1])
        scores = found(lm, settings)
        assert [group.layer for group in scores.groups] == [0, 2, 3, 4]
        assert scores.settings["layers_left_out"] == ["layer 1: no projection is known"]
        whole = found(deep_lm(), settings)
        assert values(scores) == [value for layer, value in enumerate(values(whole)) if layer != 1]
        assert chosen(scores) == [layer for layer in chosen(whole) if layer != 1]

    def test_without_a_gap_nothing_is_chosen(self, settings: Settings, tmp_path: Path) -> None:
        """Prompts are nearer to a set that holds them too than its members are to each other."""
        same = written(tmp_path / "same.jsonl", [prompt.prompt for prompt in HARMFUL])
        scores = found(deep_lm(), settings, normal=same)
        assert str(scores.settings["no_gap"]).startswith("No gap: its largest value, ")
        assert "first_guess" not in scores.settings
        assert chosen(scores) == []
        with pytest.raises(RegionError):
            scores.select()
        with pytest.raises(PromptError, match=r"No gap.*no window to start from"):
            found(deep_lm(), settings, normal=same, stage="b")


class TestStageB:
    @pytest.mark.parametrize("search", ["alternate", "grid"])
    def test_the_window_refuses_most_of_those_that_were_tried(self, settings: Settings, search: str) -> None:
        lm = deep_lm()
        before = fingerprints(lm.model)
        scores = found(lm, settings, stage="b", search=search)
        assert fingerprints(lm.model) == before
        recorded: Any = scores.settings
        tried = recorded["windows"]
        assert recorded["refused"] == max(count for _, _, count in tried)
        assert [*recorded["window"], recorded["refused"]] in tried
        assert chosen(scores) == list(range(*recorded["window"]))
        plateau = recorded["plateau"]
        shares = [sum(layer in range(*span) for span in plateau) / len(plateau) for layer in range(LAYERS)]
        assert values(scores) == pytest.approx(shares)
        assert scores.settings["depends_on"] == "stage_a+b"
        assert scores.settings["mode_used"] == "output"

    def test_no_window_is_answered_twice(self, settings: Settings, judge: LetterJudge) -> None:
        scores = found(deep_lm(), settings, stage="b", search="grid", alpha=1.2)
        tried: Any = scores.settings["windows"]
        assert len(judge.batches) == len(tried) + 1  # and the model as it is
        assert len(tried) == len({(start, end) for start, end, _ in tried}) == LAYERS * (LAYERS + 1) / 2

    def test_an_interrupted_search_continues(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        more: Settings = {"stage": "b", "search": "grid", "utility_fraction": 0.4}
        whole = judged_by(LetterJudge(), monkeypatch)
        expected = found(deep_lm(), settings, **more)
        broken = judged_by(LetterJudge(fail_after=7), monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            found(deep_lm(), settings, **more, checkpoint=tmp_path / "state")
        rest = judged_by(LetterJudge(), monkeypatch)
        again = found(deep_lm(), settings, **more, checkpoint=tmp_path / "state")
        assert broken.batches + rest.batches == whole.batches
        assert len(rest.batches) > 0
        assert again.settings == expected.settings
        assert values(again) == values(expected)
        assert chosen(again) == chosen(expected)


class TestUtility:
    def test_layers_that_utility_needs_leave_the_window(self, settings: Settings) -> None:
        """The rise of the loss by hand: output and down of one layer multiplied at a time."""
        lm = deep_lm()
        whole = found(lm, settings)
        scores = found(lm, settings, utility_fraction=0.4, alpha=1.3)
        noted: Any = scores.settings["utility_rise"]
        rises = dict(noted)
        plain = loss(lm)
        for layer in range(LAYERS):
            twin = deep_lm()
            with torch.no_grad():
                for part in twin.parts.eligible():
                    if part.layer == layer and part.role in ("output", "down"):
                        twin.model.get_parameter(part.name).mul_(1.3)
            assert rises[layer] == pytest.approx(loss(twin) - plain, abs=2e-4)
        needed = sorted(range(LAYERS), key=lambda layer: -rises[layer])[: math.floor(0.4 * LAYERS)]
        assert scores.settings["utility_layers"] == sorted(needed)
        kept = [layer for layer in chosen(whole) if layer not in needed]
        assert chosen(scores) == kept != chosen(whole)
        assert scores.settings["hull"] == [kept[0], kept[-1] + 1]
        assert values(scores) == values(whole)

    def test_a_share_of_no_layer_is_refused(self, settings: Settings) -> None:
        with pytest.raises(UsageError, match=r"0\.1 of 5 layers is none"):
            found(deep_lm(), settings, utility_fraction=0.1)


@torch.no_grad()
def loss(lm: LanguageModel) -> float:
    rows = [render(lm.tokenizer, prompt, response) for prompt, response in ANSWERED.items()]
    return -torch.cat([plain_log_probabilities(lm.model, row) for row in rows]).mean().item()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"stage": "c"}, "no stage 'c'; use a or b"),
        ({"angle": "mean"}, "use angle_of_mean or mean_of_angles"),
        ({"search": "all"}, "use alternate or grid"),
        ({"mode": "weights"}, "use auto or output or residual"),
        ({"alpha": 1}, "give an alpha above 1"),
        ({"alpha": math.nan}, "give an alpha above 1"),
        ({"utility_fraction": 1.0}, r"give a share in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_work(setting: Settings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SafetyLayers(**setting)
