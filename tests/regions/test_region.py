from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ballast.errors import RegionError
from ballast.regions import Coverage, Region, Scored, select_top
from tests.regions.worlds import PARTS, SmallPart, fingerprint, header, places, region

NUMELS = {part.name: part.numel for part in PARTS}
SHAPES = {part.name: part.shape for part in PARTS}

selections = st.fixed_dictionaries({part.name: st.sets(st.integers(0, part.numel - 1)) for part in PARTS}).filter(
    lambda selected: any(selected.values())
)


@settings(max_examples=30, deadline=None)
@given(selections)
def test_round_trip_keeps_everything(tmp_path_factory, selected):
    path = tmp_path_factory.mktemp("region") / "region.safetensors"
    before = region(selected)
    before.save(path)
    after = Region.load(path)
    assert places(after) == places(before) == {(name, place) for name, found in selected.items() for place in found}
    assert after.metadata == before.metadata
    assert after.region_id == before.region_id
    assert len(after) == sum(map(len, selected.values()))


def test_the_file_is_as_documented(tmp_path):
    parts = (SmallPart("dense", 0, "query", (10, 10)), SmallPart("sparse", 0, "key", (10, 10)))
    path = tmp_path / "region.safetensors"
    region({"dense": [0, 9, 17, 99], "sparse": [3, 5, 64]}, parts).save(path)
    tensors = load_file(path)
    assert set(tensors) == {"bits:dense", "idx:sparse"}  # 4/100 > 1/32 > 3/100
    assert tensors["bits:dense"].tolist() == [1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0]
    assert tensors["idx:sparse"].tolist() == [3, 5, 64]
    assert tensors["idx:sparse"].dtype == np.int32
    metadata = header(path)["__metadata__"]
    assert list(metadata) == ["ballast"]
    assert json.loads(metadata["ballast"])["prompts"] == {
        "name": "builtin/harmful/tune",
        "hash": fingerprint("prompts"),
        "n": 3,
    }


def test_bytes_are_stable(tmp_path):
    selected = {"lm_head": [1, 2], "layers.2.query": [3], "layers.10.query": list(range(20))}
    first, second, again = (tmp_path / name for name in ("a", "b", "c"))
    region(selected).save(first)
    region(dict(reversed(selected.items()))).save(second)
    Region.load(first).save(again)
    assert first.read_bytes() == second.read_bytes() == again.read_bytes()


def test_the_id_tells_coordinates_and_metadata_apart():
    ids = [
        region({"lm_head": [1]}),
        region({"lm_head": [2]}),
        region({"layers.2.query": [1]}),
        region({"lm_head": [1]}, seed=1),
        region({"lm_head": [1]}, salt="other weights"),
    ]
    assert len({found.region_id for found in ids}) == 5


def test_large_parameters_have_int64_indices(tmp_path):
    parts = (SmallPart("w", 0, "query", (2**16, 2**15)),)
    found = region({"w": [5, 2**31 - 1]}, parts)
    assert found.indices["w"].dtype == torch.int64
    found.save(tmp_path / "r")
    assert Region.load(tmp_path / "r").indices["w"].tolist() == [5, 2**31 - 1]


@settings(max_examples=60, deadline=None)
@given(selections, selections)
def test_algebra_equals_python_sets(first, second):
    a, b = region(first), region(second)
    left, right = places(a), places(b)
    operations = {
        "and": (lambda: a & b, left & right),
        "or": (lambda: a | b, left | right),
        "minus": (lambda: a - b, left - right),
        "xor": (lambda: a ^ b, left ^ right),
    }
    for name, (combine, expected) in operations.items():
        if expected:
            result = combine()
            assert places(result) == expected
            assert result.metadata.method == name
            assert result.metadata.parents == (a.region_id, b.region_id)
            assert set(result.metadata.model.fingerprints) == {parameter for parameter, _ in expected}
        else:
            with pytest.raises(RegionError, match="no weight"):
                combine()
    assert a.iou(b) == b.iou(a) == len(left & right) / len(left | right)
    assert a.iou(a) == 1


def test_regions_of_other_layouts_or_weights_do_not_mix():
    a = region({"lm_head": [1]})
    with pytest.raises(RegionError, match="different parameters"):
        a | region({"lm_head": [1]}, PARTS[1:])
    with pytest.raises(RegionError, match="different parameters"):
        a.iou(region({"lm_head": [1]}, (*PARTS[:-1], SmallPart("lm_head", None, "lm_head", (5, 4)))))
    tuned = region({"lm_head": [1]}, salt="tuned")
    assert a.iou(tuned) == 1
    with pytest.raises(RegionError, match="different weights of lm_head"):
        a | tuned


@settings(max_examples=30, deadline=None)
@given(selections, st.integers(0, 2**31))
def test_a_random_twin_has_the_same_number_in_every_matrix(selected, seed):
    original = region(selected)
    drawn = original.sample_like(seed)
    for name, counts in original.matrix_counts().items():
        assert drawn.matrix_counts()[name].tolist() == counts.tolist()
    assert places(original.sample_like(seed)) == places(drawn)
    assert drawn.metadata.method == "random"
    assert drawn.metadata.parents == (original.region_id,)


def test_matrix_counts_follow_the_expert_axis():
    stacked = torch.arange(24).reshape(4, 3, 2)  # two experts along the last axis
    found = region({"layers.2.last": stacked[:, :, 1].flatten().tolist()})
    assert found.matrix_counts()["layers.2.last"].tolist() == [0, 12]
    assert places(found.sample_like(3)) == places(found)  # every entry of the second expert, none of the first


def test_a_random_twin_is_uniform():
    parts = (SmallPart("w", 0, "query", (2, 5)),)
    original = region({"w": [0, 1, 2]}, parts)
    hits = sum(np.bincount(original.sample_like(seed).indices["w"].numpy(), minlength=10) for seed in range(2000))
    assert np.abs(hits / 2000 - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)


@pytest.mark.parametrize("indices", [[3, 1], [1, 1], [-1, 2], [18, 20]])
def test_indices_out_of_order_or_range_are_refused(indices):
    good = region({"lm_head": [1]})
    with pytest.raises(RegionError, match="lm_head"):
        Region({"lm_head": torch.tensor(indices)}, good.metadata)


def test_empty_and_foreign_regions_are_refused():
    good = region({"lm_head": [1]})
    with pytest.raises(RegionError, match="no weight"):
        Region({"lm_head": torch.tensor([], dtype=torch.int32)}, good.metadata)
    with pytest.raises(RegionError, match="not in its layout"):
        Region({"elsewhere": torch.tensor([1])}, good.metadata)
    with pytest.raises(RegionError, match=r"fingerprint of layers\.2\.query"):
        Region({"layers.2.query": torch.tensor([1])}, good.metadata)
    with pytest.raises(RegionError, match="not a list of integers"):
        Region({"lm_head": torch.tensor([1.0])}, good.metadata)


def test_only_the_touched_weights_of_a_model_are_checked():
    found = region({"lm_head": [1]})
    fingerprints = {part.name: fingerprint(part.name) for part in PARTS}
    found.check_model(fingerprints | {"layers.2.query": "changed"}, SHAPES)
    with pytest.raises(RegionError, match=r"lm_head holds other values.*a/toy.*open that model"):
        found.check_model(fingerprints | {"lm_head": fingerprint("tuned")}, SHAPES)
    with pytest.raises(RegionError, match=r"shape \(5, 4\), not \(4, 5\)"):
        found.check_model(fingerprints, SHAPES | {"lm_head": (5, 4)})
    with pytest.raises(RegionError, match="no parameter lm_head"):
        found.check_model({}, {})


def test_cells_count_every_entry_of_the_layout_once():
    found = region({"layers.2.Zexperts": [0, 35], "layers.2.last": [3], "lm_head": [0]})
    cells = found.cells()
    assert cells[0] == {"layer": 2, "role": "down", "selected": 0, "size": 24}
    assert cells[1] == {"layer": 2, "role": "experts.down", "selected": 3, "size": 36 + 24}
    assert [cell["layer"] for cell in cells] == [2, 2, 2, 10, 10, None]
    assert sum(cell["size"] for cell in cells) == sum(NUMELS.values()) == found.metadata.eligible
    assert found.density() == 4 / sum(NUMELS.values())


def test_summary_of_a_selection_and_of_a_derived_region():
    scores = {part.name: torch.rand(part.shape) + 0.5 for part in PARTS}
    selection = select_top(scores, 0.05, parts=PARTS)
    base = region({"lm_head": [1]})
    coverage = Coverage(scored=(Scored(role="query", tensors=2, parameters=59),))
    fingerprints = {name: fingerprint(name) for name in NUMELS}
    metadata = base.metadata.model_copy(
        update={
            "selection": selection.record,
            "coverage": coverage,
            "model": base.metadata.model.model_copy(update={"fingerprints": fingerprints}),
        }
    )
    found = Region(selection.indices, metadata)
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    everything = torch.cat([values.flatten() for values in scores.values()])
    k = int(0.05 * len(everything))
    assert summary["fraction"] == 0.05
    assert summary["requested"] == summary["actual"] == k == sum(cell["selected"] for cell in summary["cells"])
    assert summary["threshold"] == everything.topk(k).values[-1]
    assert summary["ties"] == {"taken": 1, "left": 0}
    assert summary["layers"] is None
    assert summary["coverage"]["scored"] == [{"role": "query", "tensors": 2, "parameters": 59}]
    assert (found | found.sample_like(1)).summary()["scope"] == "derived"
