"""Cells are named by what decides them, made once, and made again where they are lost, torn or another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast import load_prompts, locate, locate_all, open_model
from ballast.locate.halves import split_prompts
from ballast.patches import Origin, Patch
from ballast.prompts import PromptSet
from ballast.regions import Region, refine
from ballast.regions.refine import union_of
from ballast.runs import read_json
from ballast.study import StudyGrid, study
from ballast.study.tables import CellRow
from tests.study.world import ROWS, SAFETY, UTILITY, Here, grid, read_rows, regions, save_model, write_sets

torch.set_num_threads(1)

WANDA = {"method": "wanda", "fraction": 0.05, "scope": "per_tensor"}
SNIP = {"method": "snip", "sizes": [0.05, 0.1]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_model(folder / "one")
    write_sets(folder)
    return folder


def small(files: Path, **changes: Any) -> StudyGrid:
    """Two sets, no halves, no refinement."""
    sets = {"safety": [str(files / "locks.jsonl"), str(files / "notes.jsonl")]}
    return grid(files, **{"sets": sets, "splits": 0, "refine": ["none"], **changes})


def hashes(out: Path) -> set[str]:
    return {path.stem for path in (out / "cells").glob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with everything: two methods, two sizes of one, halves and refinement."""
    out = tmp_path_factory.mktemp("whole")
    found = study(grid(files, methods={"wanda": WANDA, "snip": SNIP}), out=out, engine=Here())
    assert found["state"] == "done"
    return out


def test_every_cell_is_what_locating_by_hand_gives(files: Path, whole: Path) -> None:
    """Safety regions of whole sets and halves, located with both methods together, plain and refined."""
    lm = open_model(files / "one")

    def scores(prompts: PromptSet) -> Any:
        return locate_all(lm, prompts, ["wanda", "snip"])

    def drawn(name: str) -> PromptSet:
        return load_prompts(files / f"{name}.jsonl", limit=ROWS, seed=0)

    useful = {name: scores(drawn(name)) for name in UTILITY}
    wanda = union_of([one[0].select(0.04, scope="per_tensor") for one in useful.values()])
    snip = union_of([one[1].select(0.04) for one in useful.values()])
    expected: dict[tuple[str, str, str, float, str], Region] = {}
    for name in SAFETY:
        (first, second), *_ = split_prompts(drawn(name), ROWS // 2, 1, 0)
        for part, prompts in (("whole", drawn(name)), ("0a", first), ("0b", second)):
            found = scores(prompts)
            for number, method, size, barred, scope in (
                (0, "wanda", 0.05, wanda, "per_tensor"),
                (1, "snip", 0.05, snip, None),
                (1, "snip", 0.1, snip, None),
            ):
                place = (method, name, part, size)
                located = found[number].select(size, scope=scope)
                expected[*place, "none"] = located
                expected[*place, "subtract"] = refine(located, [barred]).region
                expected[*place, "refill"] = found[number].select(size, scope=scope, outside=barred)
    rows = {
        (row.method, row.set, row.part, row.size, row.refinement): row
        for row in read_rows(whole, "cells", CellRow)
        if row.use == "safety"
    }
    assert rows.keys() == expected.keys()
    for place, region in expected.items():
        cell = Region.load(whole / "cells" / f"{rows[place].hash}.safetensors")
        assert cell.indices.keys() == region.indices.keys(), place
        assert all(torch.equal(cell.indices[name], region.indices[name]) for name in region.indices), place
        assert rows[place].weights == len(region)
        assert rows[place].state == "done"
    summed = {row.refinement for row in read_rows(whole, "cells", CellRow) if row.use == "utility"}
    assert summed == {"none", "union"}


def test_records_say_what_decided_a_cell(whole: Path) -> None:
    for path in (whole / "cells").glob("*.json"):
        record = read_json(path)
        assert record["state"] == "done"
        assert record["hash"] == path.stem
        assert record["weights"] == len(Region.load(path.with_suffix(".safetensors")))
        assert record["key"]["tool"].startswith("ballast-llm ")
        if record["place"]["refinement"] in ("none", "refill"):
            assert record["key"]["prompts"] == Region.load(path.with_suffix(".safetensors")).metadata.prompts.hash
            assert record["together"].count(path.stem) == 1


def test_the_same_study_makes_nothing_again(files: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "cells").iterdir()}
    engine = Here()
    study(grid(files, methods={"wanda": WANDA, "snip": SNIP}), out=whole, engine=engine)
    assert engine.located == []
    assert [type(job).__name__ for job in engine.jobs] == ["ModelEntry"]
    assert {path: path.stat().st_mtime_ns for path in (whole / "cells").iterdir()} == before


def test_passes_are_shared_and_sizes_come_from_one_scoring(files: Path, tmp_path: Path) -> None:
    engine = Here()
    study(small(files, methods={"wanda": WANDA, "snip": SNIP}), out=tmp_path, engine=engine)
    assert [[scoring.method.name for scoring in job.scorings] for job in engine.located] == [["wanda", "snip"]] * 2
    assert [len(job.cells) for job in engine.located] == [3, 3]


@pytest.mark.parametrize("stop_after", [2, 4, 9])
def test_a_study_that_was_broken_off_ends_with_the_same_bytes(
    files: Path, whole: Path, tmp_path: Path, stop_after: int
) -> None:
    chosen = grid(files, methods={"wanda": WANDA, "snip": SNIP})
    with pytest.raises(KeyboardInterrupt):
        study(chosen, out=tmp_path, engine=Here(stop_after))
    assert not (tmp_path / "study.json").exists()
    study(chosen, out=tmp_path, engine=Here())
    assert regions(tmp_path) == regions(whole)
    for table in ("pairs", "kway", "refinement"):
        assert (tmp_path / f"tables/{table}.csv").read_bytes() == (whole / f"tables/{table}.csv").read_bytes()


def test_half_written_calls_are_located_with_the_same_methods_again(files: Path, whole: Path, tmp_path: Path) -> None:
    """Killed between the cells of one call: what shared its passes before shares them again, and is not written."""
    shutil.copytree(whole / "cells", tmp_path / "cells")
    rows = [row for row in read_rows(whole, "cells", CellRow) if (row.set, row.part) == ("notes", "0a")]
    lost = {row.hash for row in rows if row.method == "snip" and row.refinement != "subtract"}
    for name in lost:
        for suffix in ("json", "safetensors"):
            (tmp_path / "cells" / f"{name}.{suffix}").unlink()
    engine = Here()
    study(grid(files, methods={"wanda": WANDA, "snip": SNIP}), out=tmp_path, engine=engine)
    (job,) = engine.located
    assert [scoring.method.name for scoring in job.scorings] == ["wanda", "snip"]
    assert job.missing == lost
    assert regions(tmp_path) == regions(whole)


@pytest.mark.parametrize("damage", ["torn region", "torn record", "foreign region", "foreign cell", "no region"])
def test_damaged_cells_are_made_again(files: Path, tmp_path: Path, damage: str) -> None:
    chosen = small(files)
    study(chosen, out=tmp_path, engine=Here())
    intact = regions(tmp_path)
    first, second = sorted(hashes(tmp_path))
    region, record = (tmp_path / "cells" / f"{first}.{suffix}" for suffix in ("safetensors", "json"))
    other, others = (tmp_path / "cells" / f"{second}.{suffix}" for suffix in ("safetensors", "json"))
    match damage:
        case "torn region":
            region.write_bytes(region.read_bytes()[:-9])
        case "torn record":
            record.write_bytes(record.read_bytes()[:40])
        case "foreign region":
            shutil.copy(other, region)
        case "foreign cell":
            shutil.copy(other, region)
            shutil.copy(others, record)
        case "no region":
            region.unlink()
    engine = Here()
    study(chosen, out=tmp_path, engine=engine)
    assert [set(job.missing) for job in engine.located] == [{first}]
    assert regions(tmp_path) == intact


def test_a_changed_grid_makes_new_cells_and_keeps_the_old_ones(files: Path, tmp_path: Path) -> None:
    def made(**changes: Any) -> set[str]:
        before = hashes(tmp_path)
        engine = Here()
        study(small(files, **changes), out=tmp_path, engine=engine)
        assert before <= hashes(tmp_path)
        new = hashes(tmp_path) - before
        assert new == {name for job in engine.located for name in job.missing}
        return new

    assert len(made()) == 2
    sets = [str(files / f"{name}.jsonl") for name in SAFETY]
    assert len(made(sets={"safety": sets})) == 1  # the third set
    assert len(made(sets={"safety": sets}, seeds=[0, 1])) == 3
    assert len(made(methods={"wanda": WANDA, "magnitude": {"method": "magnitude"}})) == 2
    assert len(made(methods={"wanda": {**WANDA, "settings": {"aggregation": "samples"}}})) == 2
    assert len(made(methods={"wanda": {**WANDA, "fraction": 0.1}})) == 2
    assert len(made(methods={"wanda": {**WANDA, "scope": "global"}})) == 2
    assert len(made(prompts=6)) == 2
    assert len(made(batch_size=2)) == 2
    assert len(made(response="Never!")) == 2
    assert len(made(splits=1)) == 4
    assert len(made(models={"again": {"model": str(files / "one"), "family": "other"}})) == 0  # another name only
    assert len(made()) == 0


def test_a_patch_and_other_weights_make_other_cells(files: Path, tmp_path: Path) -> None:
    lm, changed = open_model(files / "one"), open_model(files / "one")
    with torch.no_grad():
        changed.model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    patch = Patch.between(lm.model, changed.model, base=Origin(source="tiny", name="tiny"))
    patch.save(tmp_path / "patch.safetensors")
    changed.model.save_pretrained(tmp_path / "saved")
    changed.tokenizer.save_pretrained(tmp_path / "saved")
    models = {
        "plain": {"model": str(files / "one")},
        "patched": {"model": str(files / "one"), "patch": str(tmp_path / "patch.safetensors"), "base": "plain"},
        "saved": {"model": str(tmp_path / "saved"), "base": "plain"},
    }
    methods = {"wanda": WANDA, "delta": {"method": "delta", "fraction": 0.01}}
    # only one weight moved, so that 1 % of them cannot be selected; every cell of `delta` fails
    found = study(small(files, models=models, methods=methods), out=tmp_path / "out", engine=Here())
    rows = read_rows(tmp_path / "out", "cells", CellRow)
    of = {name: {row.hash for row in rows if (row.model, row.method) == (name, "wanda")} for name in models}
    assert not of["plain"] & of["patched"]
    assert of["patched"] == of["saved"]  # equal weights
    assert found["left_out"] == [
        {"model": "plain", "method": "delta", "reason": "the model has no base to compare with"}
    ]
    assert {(row.model, row.method) for row in rows if row.state == "failed"} == {
        ("patched", "delta"),
        ("saved", "delta"),
    }


def test_files_that_settings_name_decide_too(files: Path, tmp_path: Path) -> None:
    benign = tmp_path / "calm.jsonl"

    def located(words: list[str]) -> set[str]:
        benign.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in words))
        layers = {"method": "safety_layers", "fraction": 0.5, "settings": {"normal": str(benign)}}
        study(small(files, methods={"layers": layers}), out=tmp_path / "out", engine=Here())
        return {row.hash for row in read_rows(tmp_path / "out", "cells", CellRow)}

    first, second = located(["Hi", "Good day", "Thanks"]), located(["Hi", "Good day", "Welcome"])
    assert not first & second
    assert located(["Hi", "Good day", "Thanks"]) == first


def test_seeds_draw_anew_and_seed_the_method(files: Path, tmp_path: Path) -> None:
    study(small(files, seeds=[3], methods={"random": {"method": "random"}}), out=tmp_path, engine=Here())
    lm, rows = open_model(files / "one"), read_rows(tmp_path, "cells", CellRow)
    for row in rows:
        prompts = load_prompts(files / f"{row.set}.jsonl", limit=ROWS, seed=3)
        expected = locate_all(lm, prompts, ["random"], seed=3)[0].select()
        assert Region.load(tmp_path / "cells" / f"{row.hash}.safetensors").region_id == expected.region_id
        assert expected.region_id != locate(lm, prompts, "random").select().region_id
