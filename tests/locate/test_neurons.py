"""Safety-specific neurons: what every method promises, and its selections by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from ballast.errors import PromptError, RegionError, UsageError
from ballast.locate import UnitScores, locate
from ballast.locate.importance.neuron_importance import Importances
from ballast.locate.neurons import Neurons, Tally
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.models.units import NEURON_KINDS, UnitGroup
from ballast.prompts import PromptSet
from ballast.prompts.batches import collate
from ballast.prompts.chat import render
from ballast.regions import Region, overlap, refine
from tests.worlds import prompt_set, same_bits, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?", "Write a threat", "And a lie"], ["No.", "No, I will not.", "Never."])
ORDINARY = prompt_set("ordinary", ["Tell me a story about rain", "Two and two"])


def found(lm: LanguageModel, prompts: PromptSet = PROMPTS, batch_size: int = 2, **settings: Any) -> UnitScores:
    scores = locate(lm, prompts, "neurons", batch_size=batch_size, **settings)
    assert isinstance(scores, UnitScores)
    return scores


def selected(region: Region) -> int:
    return sum(map(len, region.metadata.selected_units.values()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_promises(name: str) -> None:
    lm = tiny_lm(name)
    before = fingerprints(lm.model)
    scores = found(lm)
    assert fingerprints(lm.model) == before
    assert scores.granularity == "neuron"
    assert scores.chosen is None
    for group, value in zip(scores.groups, scores.values, strict=True):
        assert value.shape == (group.size,)
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        assert (value >= 0).all()
    again = found(lm)
    assert all(torch.equal(first, second) for first, second in zip(scores.values, again.values, strict=True))
    region = scores.select(0.05)
    assert same_bits(region.indices, again.select(0.05).indices)
    per_kind = {kind: sum(group.size for group in scores.groups if group.kind == kind) for kind in NEURON_KINDS}
    chosen = {kind: len(region.metadata.selected_units.get(kind, ())) for kind in NEURON_KINDS}
    assert chosen == {kind: size // 20 for kind, size in per_kind.items()}


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_score_is_the_mean_share_in_the_importance_of_the_kind(name: str) -> None:
    """From importances of one prompt at a time; only prompts are read, responses are not."""
    lm = tiny_lm(name)
    scores = found(lm, batch_size=3)
    importances = Importances(lm, NEURON_KINDS, 200)
    shares = [torch.zeros(group.size) for group in importances.groups]
    for prompt in PROMPTS:
        tables = importances.of(collate([render(lm.tokenizer, prompt.prompt)], lm.pad_id))
        for number, group in enumerate(importances.groups):
            of_kind = [t for g, t in zip(importances.groups, tables, strict=True) if g.kind == group.kind]
            shares[number] += tables[number][0] / sum(float(table.sum()) for table in of_kind) / len(PROMPTS)
    for value, expected in zip(scores.values, shares, strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=1e-7)
    assert scores.settings["prompts_used"] == 3


class TestTally:
    """Two layers of four output neurons, and two experts of two neurons each; three prompts."""

    GROUPS = (
        UnitGroup("output", 0, None, (4,), ()),
        UnitGroup("output", 1, None, (4,), ()),
        UnitGroup("experts.feed_forward", 1, 0, (2,), ()),
        UnitGroup("experts.feed_forward", 1, 1, (2,), ()),
    )
    TABLES = (
        ([4.0, 3, 2, 1], [0.0, 5, 6, 0], [1.0, 2], [0.0, 7]),
        ([2.0, 0, 3, 1], [2.0, 3, 1, 0], [0.0, 0], [5.0, 0]),
        ([0.0, 1, 2, 0], [1.0, 3, 2, 1], [4.0, 1], [3.0, 2]),
    )
    HITS = ([2, 2, 2, 0], [1, 3, 2, 0], [1, 1], [2, 1])

    def tally(self, batches: tuple[tuple[int, ...], ...] = ((0, 1), (2,)), **settings: Any) -> Tally:
        tally = Tally(list(self.GROUPS), Neurons(**{"attention_top": 2, "feed_forward_top": 2, **settings}))
        for batch in batches:
            tally.add([torch.tensor([self.TABLES[row][number] for row in batch]) for number in range(4)])
        return tally

    def test_shares(self) -> None:
        """A prompt's importances are divided by their sum over all layers and experts: 21, 12, 10 and 10, 5, 10."""
        shares = [values.tolist() for values in self.tally().shares]
        assert shares[0] == pytest.approx([4 / 21 + 2 / 12, 3 / 21 + 1 / 10, 2 / 21 + 3 / 12 + 2 / 10, 1 / 21 + 1 / 12])
        assert shares[1][:2] == pytest.approx([2 / 12 + 1 / 10, 5 / 21 + 3 / 12 + 3 / 10])
        assert shares[2:] == [pytest.approx([1 / 10 + 4 / 10, 2 / 10 + 1 / 10]), pytest.approx([1 + 3 / 10, 9 / 10])]

    def test_a_prompt_without_importance_has_no_shares(self) -> None:
        tally = Tally(list(self.GROUPS[:1]), Neurons())
        tally.add([torch.tensor([[0.0, 0, 0, 0], [1.0, 1, 0, 2]])])
        assert tally.shares[0].tolist() == [0.25, 0.25, 0, 0.5]

    @pytest.mark.parametrize("batches", [((0, 1), (2,)), ((0,), (1,), (2,)), ((0, 1, 2),)])
    @pytest.mark.parametrize("top", [2, 0.5])
    def test_hits(self, batches: tuple[tuple[int, ...], ...], top: float) -> None:
        """The two best of each layer, of all its experts together; what has no importance is never among them."""
        tally = self.tally(batches, selection="intersection", attention_top=top, feed_forward_top=top)
        assert [hits.tolist() for hits in tally.hits] == list(self.HITS)
        assert tally.prompts == 3

    @pytest.mark.parametrize(
        ("settings", "least"),
        [
            ({"selection": "intersection"}, 3),
            ({"selection": "frequency", "tau": 1.0}, 3),
            ({"selection": "frequency", "tau": 0.67}, 3),
            ({"selection": "frequency", "tau": 0.66}, 2),
            ({"selection": "frequency", "tau": 0.1}, 1),
            ({"selection": "frequency", "tau": "auto", "size": 0.84}, 1),  # 10 of 12 are among the top of a prompt
            ({"selection": "frequency", "tau": "auto", "size": 0.83}, 2),
            ({"selection": "frequency", "tau": "auto", "size": 0.5}, 2),  # 6 of two prompts
            ({"selection": "frequency", "tau": "auto", "size": 0.49}, 3),
            ({"selection": "frequency", "tau": "auto", "size": 0.01}, 3),  # even the intersection is larger
        ],
    )
    def test_least_hits(self, settings: dict[str, Any], least: int) -> None:
        assert Neurons(**settings).least_hits(self.tally(**settings)) == least


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(("selection", "needed"), [("intersection", 3), ("frequency", 2)])
def test_own_choice(name: str, selection: str, needed: int) -> None:
    """Counted prompt by prompt: the top third of attention and the four best feed-forward neurons of each layer."""
    lm = tiny_lm(name)
    scores = found(lm, selection=selection, tau=0.5, attention_top=1 / 3, feed_forward_top=4)
    importances = Importances(lm, NEURON_KINDS, 200)
    groups = importances.groups
    hits: Counter[tuple[str, int, int, int]] = Counter()
    for prompt in PROMPTS:
        tables = importances.of(collate([render(lm.tokenizer, prompt.prompt)], lm.pad_id))
        for kind, layer in {(group.kind, group.layer) for group in groups}:
            ranked = sorted(
                (-float(value), (group.kind, group.layer, -1 if group.expert is None else group.expert, unit))
                for group, table in zip(groups, tables, strict=True)
                if (group.kind, group.layer) == (kind, layer)
                for unit, value in enumerate(table[0])
            )
            count = 4 if kind.endswith("feed_forward") else len(ranked) // 3
            hits.update(place for _, place in ranked[:count])
    expected = {place for place, count in hits.items() if count >= needed}
    chosen = {
        (group.kind, group.layer, -1 if group.expert is None else group.expert, unit)
        for group, units in zip(groups, scores.chosen or (), strict=True)
        for unit in units.tolist()
    }
    assert chosen == expected
    assert scores.settings["least_prompts"] == needed
    region = scores.select()
    assert selected(region) == len(expected)
    by_mean = found(lm, selection="mean").values
    assert all(torch.equal(one, other) for one, other in zip(scores.values, by_mean, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.parametrize("selection", ["mean", "frequency"])
def test_leaving_out_foundation_neurons(name: str, selection: str) -> None:
    """Subtracting the weights of neurons found on harmless prompts subtracts these neurons, kind by kind."""
    lm = tiny_lm(name)
    settings: dict[str, Any] = {"selection": selection, "tau": 0.5}
    safety, foundation = found(lm, **settings), found(lm, ORDINARY, **settings)
    fraction = 0.25 if selection == "mean" else None
    located, useful = safety.select(fraction), foundation.select(fraction)
    units = {
        (kind, place)
        for kind, places in located.metadata.selected_units.items()
        for place in set(places) - set(useful.metadata.selected_units.get(kind, ()))
    }
    assert 0 < len(units) < selected(located)
    expected: dict[str, set[int]] = {}
    for group in safety.groups:
        numbers = torch.arange(group.size).reshape(group.shape)
        for kind, (layer, expert, *index) in units:
            if (kind, layer, expert) == (group.kind, group.layer, -1 if group.expert is None else group.expert):
                for name_, entries in group.entries(numbers[tuple(index)].reshape(1)).items():
                    expected.setdefault(name_, set()).update(entries.tolist())
    left = refine(located, [useful]).region
    assert {name_: set(entries.tolist()) for name_, entries in left.indices.items() if len(entries)} == expected
    refilled = safety.select(fraction, outside=useful)
    assert refilled.intersection_size(useful) == 0
    named = {(kind, place) for kind, places in refilled.metadata.selected_units.items() for place in places}
    assert named >= units if selection == "mean" else named == units


def test_intersections_over_different_numbers_of_prompts_are_not_compared() -> None:
    lm = tiny_lm()
    regions = {
        (selection, len(prompts)): found(lm, prompts, selection=selection, tau=1.0, attention_top=0.5).select()
        for selection in ("intersection", "frequency")
        for prompts in (PROMPTS, ORDINARY)
    }
    with pytest.raises(RegionError, match=r"intersections over 2 and 3 prompts.*the same number"):
        overlap([regions["intersection", 3], regions["intersection", 2]])
    assert overlap([regions["intersection", 3], regions["frequency", 3]])[0].iou == 1
    overlap([regions["intersection", 3], regions["frequency", 2]])


class TestNotes:
    def test_experts_without_tokens(self) -> None:
        lm = tiny_lm("qwen3_moe")
        scores = found(lm, prompt_set("one", ["Hm"]), kinds="feed_forward")
        unread = {
            (group.layer, group.expert)
            for group, value in zip(scores.groups, scores.values, strict=True)
            if not value.any()
        }
        named = [f"layer {layer}, expert {expert}: experts.feed_forward" for layer, expert in sorted(unread)]
        assert scores.settings.get("without_importance", []) == named

    def test_what_is_left_out_or_approximated(self) -> None:
        assert "approximated" in found(tiny_lm("olmo2")).settings
        assert "left_out" in found(tiny_lm("deepseek_v3")).settings


class TestSettings:
    def test_kinds_as_a_text(self) -> None:
        assert Neurons(kinds="value, output").kinds == ("value", "output")
        groups = found(tiny_lm(), kinds="value,output").groups
        assert {group.kind for group in groups} == {"value", "output"}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kinds": "query,gate"}, "no kind of neurons 'gate'; use feed_forward, query"),
            ({"kinds": ()}, "at least one kind"),
            ({"selection": "union"}, "no selection 'union'; use mean, intersection, frequency"),
            ({"tau": 1.5}, "1.5"),
            ({"size": 0.0}, "0.0"),
            ({"attention_top": 0}, "cannot be 0; give a number of neurons or a share"),
            ({"feed_forward_top": 1.5}, "cannot be 1.5"),
        ],
    )
    def test_what_cannot_work(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Neurons(**settings)

    def test_a_top_of_nothing(self) -> None:
        with pytest.raises(UsageError, match=r"top 0\.01 of 16 key neurons is none"):
            found(tiny_lm(), kinds="key", selection="intersection", attention_top=0.01)

    def test_a_top_of_more_than_there_are(self) -> None:
        scores = found(tiny_lm(), kinds="key", selection="intersection", attention_top=1000)
        assert selected(scores.select()) == 32

    def test_a_prompt_that_does_not_fit(self) -> None:
        with pytest.raises(PromptError, match="there is room for 512"):
            found(tiny_lm(), prompt_set("long", ["word " * 200]))
