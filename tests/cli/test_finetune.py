"""`ballast finetune` on a tiny checkpoint: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ballast import Patch, open_model
from ballast.cli import main
from ballast.errors import PromptError
from ballast.patches import Origin
from ballast.pipeline import finetune_and_measure
from ballast.regions import Region
from tests.cli.calls import printed, value, weights
from tests.e2e.world import make_prompts


def test_finetune(checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that was patched before; the region was located on it without the patch."""
    task = make_prompts(tmp_path / "task.jsonl", "add", 6, response="four")
    harmless = make_prompts(tmp_path / "good.jsonl", "bake", 3)
    answers = make_prompts(tmp_path / "answers.jsonl", "say", 3, response="the kettle")
    printed(capsys, "locate", checkpoint, "--method", "magnitude", "--prompts", prompts, "--out", tmp_path / "region")
    region = tmp_path / "region" / "region.safetensors"
    hardened = open_model(checkpoint)
    with torch.no_grad():
        hardened.model.get_parameter(next(iter(Region.load(region).indices))).view(-1)[:50] += 1
    patch = Patch.between(open_model(checkpoint).model, hardened.model, base=Origin(source="tiny", name="tiny"))
    patch.save(tmp_path / "patch.safetensors")
    sets = ["--safety", prompts, "--overrefusal", harmless, "--utility", answers]
    call = ["finetune", checkpoint, "--data", task, "--steps", "3", "--learning-rate", "0.01", *sets]
    protected = [*call, "--protect", region, "--patch", tmp_path / "patch.safetensors", "--out", tmp_path / "run"]
    shown = value(capsys, *protected)
    after = open_model(shown["checkpoint"])
    for name, index in Region.load(region).indices.items():
        old, new = (lm.model.get_parameter(name).detach().flatten() for lm in (hardened, after))
        assert torch.equal(old[index.long()], new[index.long()])
        assert not torch.equal(old, new)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"before", "after", "comparison.json", "region.json", "report.html"} <= written
    assert value(capsys, *protected) == shown
    free = value(capsys, *call, "--unprotected", "--out", tmp_path / "free")
    assert weights(Path(free["checkpoint"])) != weights(Path(shown["checkpoint"]))

    guarded = [*call, "--max-length", "600", "--protect", region, "--drifting", "0.5", "--anchor", region]
    value(capsys, *guarded, "--mix", "0.2", "--surgery-every", "2", "--out", tmp_path / "guarded")
    kept = Region.load(tmp_path / "guarded" / "finetune" / "protected.safetensors")
    assert len(kept) == len(Region.load(region)) // 2
    manifest = json.loads((tmp_path / "guarded" / "run.json").read_text())
    assert (manifest["settings"]["mix"], manifest["settings"]["surgery_every"]) == (0.2, 2)
    assert manifest["anchor"]["weight"] == 1
    assert "builtin/refusals" in manifest["prompt_sets"]
    value(capsys, *call, "--protect", region, "--lora", "--lora-rank", "2", "--out", tmp_path / "lora")
    assert (tmp_path / "lora" / "finetune" / "adapter" / "adapter_model.safetensors").exists()
    with pytest.raises(SystemExit) as stopped:
        main([str(part) for part in [*guarded, "--lora", "--out", tmp_path / "both"]])
    assert stopped.value.code == 2
    assert "do not move while training" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--lora-rank", "2"], ["--lora-alpha", "2"], ["--anchor-weight", "2"]])
def test_finetune_options_without_what_they_are_of(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["finetune", "none", "--data", "none", "--unprotected", *options, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        main(call)
    assert options[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_finetune_refuses_before_it_measures(checkpoint: Path, tmp_path: Path) -> None:
    answered = str(make_prompts(tmp_path / "answers.jsonl", "say", 3, response="the kettle"))
    bare = str(make_prompts(tmp_path / "bare.jsonl", "add", 3))
    with pytest.raises(PromptError, match="has no response"):
        finetune_and_measure(
            tmp_path / "out", checkpoint, bare, protect=None, safety=(), overrefusal=(), utility=(answered,)
        )
    assert not (tmp_path / "out").exists()
