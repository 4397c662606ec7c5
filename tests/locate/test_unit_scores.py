"""Regions of neurons: what they own, how they are named, saved, refined."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from ballast.errors import RegionError, UsageError
from ballast.locate import UnitScores
from ballast.models.units import neuron_groups
from ballast.regions import Region, overlap, refine
from tests.worlds import prompt_set, same_bits, tiny_lm

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?"])


def scored(name: str = "mixtral", seed: int = 0, chosen: bool = False) -> UnitScores:
    lm = tiny_lm(name)
    groups, _ = neuron_groups(lm)
    generator = torch.Generator().manual_seed(seed)
    values = tuple(0.1 + torch.rand(group.size, generator=generator) for group in groups)
    own = tuple(torch.arange(group.size)[: 2 if group.layer == 1 else 0] for group in groups)
    return UnitScores(
        lm=lm,
        prompts=PROMPTS,
        method="neurons",
        fidelity="test",
        settings={},
        seed=0,
        granularity="neuron",
        groups=tuple(groups),
        values=values,
        chosen=own if chosen else None,
    )


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "mixtral", "gpt_oss", "deepseek_v3"])
def test_the_weights_are_those_of_the_named_units(name: str, tmp_path: Path) -> None:
    scores = scored(name)
    region = scores.select(0.1)
    units = region.metadata.selected_units
    assert region.metadata.scored_units == {
        kind: sum(group.size for group in scores.groups if group.kind == kind)
        for kind in {group.kind for group in scores.groups}
    }
    expected: dict[str, set[int]] = {}
    for group in scores.groups:
        for row in units.get(group.kind, ()):
            layer, expert, *index = row
            if (layer, expert) == (group.layer, -1 if group.expert is None else group.expert):
                number = int(torch.arange(group.size).reshape(group.shape)[tuple(index)])
                for parameter, entries in group.entries(torch.tensor([number])).items():
                    expected.setdefault(parameter, set()).update(entries.tolist())
    assert {parameter: set(entries.tolist()) for parameter, entries in region.indices.items()} == expected
    summary = region.summary()
    assert summary["granularity"] == "neuron"
    assert summary["units"]["selected"] == sum(map(len, units.values())) == region.metadata.selection.actual
    assert summary["units"]["scored"] == sum(group.size for group in scores.groups)
    assert summary["actual"] == len(region) == sum(map(len, expected.values()))
    region.save(tmp_path / "region.safetensors")
    loaded = Region.load(tmp_path / "region.safetensors")
    assert loaded.metadata == region.metadata
    assert same_bits(loaded.indices, region.indices)


def test_what_was_not_scored_is_listed() -> None:
    """Attention through latent vectors has no query, key or value neurons."""
    coverage = scored("deepseek_v3").select(0.1).metadata.coverage
    assert {row.role for row in coverage.skipped if row.reason == "not scored by this method"} == {
        "query_down",
        "query_up",
        "key_value_down",
        "key_value_up",
    }
    assert {row.role for row in coverage.scored} >= {"output", "gate", "experts.down", "shared_experts.up"}


def test_layers() -> None:
    region = scored().select(0.1, layers=[1])
    assert {tensor.layer for name, tensor in region.layout.items() if name in region.indices} == {1}
    with pytest.raises(UsageError, match="no layer 7 with scores; choose from 0 to 1"):
        scored().select(0.1, layers=[1, 7])


def test_own_choice() -> None:
    scores = scored(chosen=True)
    region = scores.select()
    expected = [(group.kind, group.layer) for group in scores.groups if group.layer == 1 for _ in range(2)]
    found = [(kind, row[0]) for kind, rows in region.metadata.selected_units.items() for row in rows]
    assert sorted(found) == sorted(expected)
    assert len(scores.select(0.1)) != len(region)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "mixtral", "gpt_oss"])
def test_subtracting_weights_is_subtracting_units(name: str) -> None:
    """Neurons share no weight, so a difference of regions is a difference of neurons, and a refill knows its units."""
    safety, utility = scored(name, 0), scored(name, 1)
    located, useful = safety.select(0.2), utility.select(0.3)
    left = refine(located, [useful]).region
    units = {
        kind: set(rows) - set(useful.metadata.selected_units.get(kind, ()))
        for kind, rows in located.metadata.selected_units.items()
    }
    filled = safety.select(0.2, outside=useful)
    assert filled.intersection_size(useful) == 0
    assert len(left - filled if left.intersection_size(filled) < len(left) else ()) == 0
    named = {kind: set(rows) for kind, rows in filled.metadata.selected_units.items()}
    assert all(rows <= named[kind] for kind, rows in units.items() if rows)
    assert filled.metadata.selection.actual == located.metadata.selection.actual


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="not ranked per_row"):
        scored().select(0.1, scope="per_row")
    with pytest.raises(UsageError, match="use direction top"):
        scored().select(0.1, direction="bottom", outside=scored().select(0.1))
    with pytest.raises(RegionError, match="were asked for"):
        scored().select(0.0001)
    nothing = dataclasses.replace(scored(), chosen=tuple(torch.arange(0) for _ in scored().groups))
    with pytest.raises(RegionError, match="The method neurons chose no unit; give a fraction"):
        nothing.select()


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_overlap_of_neurons_by_their_weights_is_the_overlap_of_weights(architecture: str) -> None:
    """No weight belongs to two neurons, so weighing each neuron by its number of weights counts weights."""
    scores = [scored(architecture, seed) for seed in (0, 1)]
    regions = [one.select(0.3) for one in scores]
    owned = {
        (group.kind, group.layer, -1 if group.expert is None else group.expert): sum(
            map(len, group.entries(torch.tensor([0])).values())
        )
        for group in scores[0].groups
    }
    chosen = [
        {(kind, unit) for kind, units in region.metadata.selected_units.items() for unit in units} for region in regions
    ]

    def weight(units: set[tuple[str, tuple[int, ...]]]) -> int:
        return sum(owned[kind, unit[0], unit[1]] for kind, unit in units)

    (pair,) = overlap(regions, draws=1)
    assert pair.intersection == weight(chosen[0] & chosen[1]) > 0
    assert pair.union == weight(chosen[0] | chosen[1])
    assert pair.units is not None
    assert pair.units.intersection == len(chosen[0] & chosen[1])
