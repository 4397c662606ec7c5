"""Region files that are damaged or do not fit are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ballast.errors import RegionError
from ballast.regions import Region, RegionFile
from tests.regions.worlds import PARTS, header, region

NUMELS = {part.name: part.numel for part in PARTS}
SHAPES = {part.name: part.shape for part in PARTS}

READERS = (Region.load, RegionFile.open)  # what one refuses the other refuses

selections = st.fixed_dictionaries({part.name: st.sets(st.integers(0, part.numel - 1)) for part in PARTS}).filter(
    lambda selected: any(selected.values())
)


def rewritten(path, change_tensors=lambda tensors: None, change_record=lambda record: None) -> None:
    """Write a Region file again with other content, as a careless or hostile hand would."""
    tensors = load_file(path)
    record = json.loads(header(path)["__metadata__"]["ballast"])
    change_tensors(tensors)
    change_record(record)
    save_file(tensors, path, {"ballast": json.dumps(record)})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "region.safetensors"
    region({"lm_head": [1, 5, 19], "layers.10.experts": [7]}).save(path)  # bits and idx
    return path


def refused(path, match: str) -> None:
    for read in READERS:
        with pytest.raises(RegionError, match=match) as caught:
            read(path)
        assert "\n" not in str(caught.value).strip()


def test_files_that_are_no_regions_are_refused(saved, tmp_path):
    refused(tmp_path / "missing", "is not a file")
    refused(tmp_path, "is not a file")
    refused("/dev/zero", "is not a file")
    save_file({"w": np.zeros(3)}, tmp_path / "other")
    refused(tmp_path / "other", "but no region")
    save_file({"w": np.zeros(3)}, tmp_path / "text", {"ballast": "{"})
    refused(tmp_path / "text", "not JSON")
    save_file({"w": np.zeros(3)}, tmp_path / "text", {"ballast": "[" * 100_000})
    refused(tmp_path / "text", "not JSON")
    rewritten(saved, change_record=lambda record: record.update(schema_version=2))
    refused(saved, "schema 2")


def test_a_file_from_before_a_field_with_a_default_existed_keeps_its_id(saved):
    before = Region.load(saved)
    assert before.metadata.variant is None
    rewritten(saved, change_record=lambda record: record.pop("variant"))
    assert Region.load(saved).region_id == before.region_id


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_files_are_refused(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    refused(saved, "cannot be read")


def test_every_flipped_bit_is_noticed(saved):
    data = saved.read_bytes()
    random = np.random.default_rng(0)
    for position in [*range(8), *random.integers(8, len(data), 300).tolist(), *range(len(data) - 12, len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(random.integers(8))
        saved.write_bytes(damaged)
        for read in READERS:
            with pytest.raises(RegionError):
                read(saved)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.update({"idx:lm_head": np.array([1], np.int32)}), "does not belong"),
        (lambda t: t.update({"idx:../../etc/passwd": np.array([1], np.int32)}), "does not belong"),
        (lambda t: t.update({"more": np.array([1], np.int32)}), "does not belong"),
        (lambda t: t.update({"bits:lm_head": np.zeros(8, np.uint8)}), "selects nothing"),
        (lambda t: t.update({"bits:lm_head": np.full(8, 255, np.uint8)}), "not ascending and unique within its 20"),
        (lambda t: t.update({"bits:lm_head": np.ones(16, np.uint8)}), "not 8 bytes"),
        (lambda t: t.update({"bits:lm_head": np.ones(8, np.int8)}), "not 8 bytes"),
        (lambda t: t.update({"idx:layers.10.experts": np.array([7, 3], np.int32)}), "not ascending"),
        (lambda t: t.update({"idx:layers.10.experts": np.array([60], np.int64)}), "not ascending"),
        (lambda t: t.update({"idx:layers.10.experts": np.array([[7]], np.int32)}), "not a list"),
        (lambda t: t.update({"idx:layers.10.experts": np.array(7, np.int32)}), "not a list"),
        (lambda t: t.update({"idx:layers.10.experts": np.array([8], np.int32)}), "was changed"),
        (lambda t: t.pop("bits:lm_head"), "was changed"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, change, match):
    rewritten(saved, change_tensors=change)
    refused(saved, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.update(surprise=1), "surprise"),
        (lambda r: r.pop("method"), "method"),
        (lambda r: r.update(seed=7), "was changed"),
        (lambda r: r["layout"].update({"../x": r["layout"]["lm_head"]}), "layout"),
        (lambda r: r["layout"]["lm_head"].update(shape=[4, 0]), "shape"),
        (lambda r: r["layout"]["lm_head"].update(expert_dim=2), "expert_dim"),
        (lambda r: r["layout"]["lm_head"].update(shape=[2**40, 2**40]), "not .* bytes"),
        (lambda r: r["layout"].pop("lm_head"), "lm_head"),
        (lambda r: r["model"]["fingerprints"].update(lm_head="short"), "fingerprints"),
        (lambda r: r["model"]["fingerprints"].pop("lm_head"), "fingerprint of lm_head"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(saved, change, match):
    rewritten(saved, change_record=change)
    refused(saved, match)


def test_a_region_in_its_file_is_the_region(saved):
    whole, stored = Region.load(saved), RegionFile.open(saved)
    assert (stored.region_id, stored.metadata) == (whole.region_id, whole.metadata)
    assert list(stored.indices) == list(whole.indices)
    for name, indices in whole.indices.items():
        assert torch.equal(stored.indices[name], indices)
        assert stored.indices[name].dtype == indices.dtype
