"""A model spread over real processes of `torchrun` against the same model in this one: the same bits."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from ballast import load_prompts, locate, open_model
from ballast.errors import UsageError
from ballast.models import sharded
from tests.locate.sharded_process import CASES, regions_of, scored, selections
from tests.torchrun import ROOT, torchrun
from tests.worlds import same_bits, tiny_lm

torch.set_num_threads(1)


class Ended(NamedTuple):
    """What the processes of one run left behind."""

    folder: Path
    noted: list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Two processes; and three, over which neither rows nor batches divide."""
    folder = tmp_path_factory.mktemp("processes")
    torchrun(request.param, "-m", "tests.locate.sharded_process", folder)
    return Ended(folder, [json.loads((folder / f"noted-{rank}.json").read_text()) for rank in range(request.param)])


@pytest.mark.parametrize(("name", "method"), CASES)
def test_scores_and_region_files_are_those_of_one_process(ended: Ended, name: str, method: str, tmp_path: Path) -> None:
    expected = scored(tiny_lm(name), method)
    regions = dict(regions_of(expected))
    for label, region in regions.items():
        region.save(tmp_path / label)
    for rank, noted in enumerate(ended.noted):
        assert same_bits(load_file(ended.folder / f"{name}-{method}-scores-{rank}.safetensors"), expected.values)
        assert noted["cells"][f"{name}-{method}"] == expected.cells()
        for label in regions:
            written = ended.folder / f"{name}-{method}-{label}-{rank}.safetensors"
            assert written.read_bytes() == (tmp_path / label).read_bytes(), label


def test_each_process_holds_its_rows_of_the_scores(ended: Ended) -> None:
    processes = len(ended.noted)
    for name, method in CASES:
        held = [noted["held"][f"{name}-{method}"] for noted in ended.noted]
        for part in tiny_lm(name).parts.eligible():
            rows = part.shape[0]
            bounds = [min(rank * -(-rows // processes), rows) for rank in range(processes + 1)]
            assert [one[part.name] * rows // part.numel for one in held] == [
                after - before for before, after in itertools.pairwise(bounds)
            ]


def test_ties_go_to_the_first_across_processes(ended: Ended) -> None:
    expected = json.loads(json.dumps(selections(lambda values: values)))
    assert any(record["ties_taken"] > 1 and record["ties_left"] > 1 for _, record in expected)
    for noted in ended.noted:
        assert noted["tied"] == expected


def test_what_does_not_work_is_refused(ended: Ended) -> None:
    for noted in ended.noted:
        wanda, policy_gradient, checkpoint, several, again, unused = noted["refused"]
        assert "UsageError: The method wanda" in wanda
        assert "UsageError: The method esi with these settings" in policy_gradient
        assert "give no checkpoint" in checkpoint
        assert "one method at a time" in several
        assert "sharded already" in again
        assert "ModelError: No gradient reached 3 parameters" in unused


def test_one_process_alone_is_told_to_use_torchrun(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="start the script with torchrun"):
        sharded(tiny_lm())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(UsageError, match="There is one process"):
            sharded(tiny_lm())
    finally:
        dist.destroy_process_group()


def test_the_script_of_the_page_writes_the_file_of_one_process(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/sharded.md").read_text("utf-8"), flags=re.DOTALL)
    (tmp_path / "locate_sharded.py").write_text(script, "utf-8")
    opened = tiny_lm()
    opened.model.save_pretrained(tmp_path / "model")
    opened.tokenizer.save_pretrained(tmp_path / "model")
    torchrun(2, tmp_path / "locate_sharded.py", tmp_path / "model", tmp_path / "many.safetensors")
    lm = open_model(tmp_path / "model", device="cpu")
    region = locate(lm, load_prompts("builtin/harmful/tune", limit=16), "esi").select(0.01)
    region.save(tmp_path / "one.safetensors")
    assert (tmp_path / "many.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
