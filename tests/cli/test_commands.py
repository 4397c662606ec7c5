"""Every command on a tiny checkpoint: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ballast import Patch, open_model
from ballast.cli import main
from ballast.patches import Origin
from ballast.patches.export import export
from ballast.regions import Region
from tests.cli.calls import printed, value, weights
from tests.e2e.world import make_checkpoint, make_prompts
from tests.locate.adapters import adapted
from tests.worlds import tiny_lm


def test_attack(checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harmless = make_prompts(tmp_path / "good.jsonl", "say", 2)
    sets = ["--safety", prompts, "--overrefusal", harmless, "--judge", "keyword", "--steps", "2", "--steps", "1"]
    found = value(capsys, "attack", checkpoint, *sets, "--out", tmp_path / "attack")
    assert found.keys() == {"builtin/identity_shift", "builtin/compliance"}
    for rows in found.values():
        assert [row["step"] for row in rows] == [0, 1, 2]
        assert [result["name"] for result in rows[0]["sets"]] == ["bad", "good"]
    text = printed(capsys, "attack", checkpoint, *sets, "--out", tmp_path / "attack")
    assert "Trained on builtin/compliance" in text
    assert "no model was kept" in text
    assert not list(tmp_path.rglob("*.safetensors"))


def test_measure_compare_report(
    checkpoint: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = make_prompts(tmp_path / "answers.jsonl", "say", 3, response="the kettle")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        sets = ["--safety", prompts, "--utility", answers, "--judge", "keyword"]
        text = printed(capsys, "measure", checkpoint, *map(str, sets), "--out", folder)
        assert "Attack success" in text
    change = value(capsys, "compare", *folders, "--out", tmp_path / "c")
    assert change["sets"][0]["difference"] == 0
    assert change["utility"][0]["difference"] == 0
    assert (tmp_path / "c" / "comparison.json").exists()
    page = Path(value(capsys, "report", folders[0])["report"])
    assert page.read_text().startswith("<!DOCTYPE html>")
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(folders[0]), "--figures", str(tmp_path / "figures")])
    assert stopped.value.code == 2
    assert "pip install 'ballast-llm[figures]'" in capsys.readouterr().err


def test_locate_and_overlap(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for method in ("esi", "magnitude"):
        out = tmp_path / method
        options = ("--prompts", prompts, "--method", method, "--fraction", "0.1", "--out", out)
        found[method] = value(capsys, "locate", checkpoint, *options)
        assert value(capsys, "locate", checkpoint, *options) == found[method]  # a second call has nothing to do
    assert found["esi"]["actual"] == found["esi"]["eligible"] // 10
    upper = value(capsys, "locate", checkpoint, "--prompts", prompts, "--layers", "1", "--out", tmp_path / "upper")
    assert {cell["layer"] for cell in upper["cells"] if cell["selected"]} == {1}
    assert upper["actual"] == upper["eligible"] // 100
    [pair] = value(capsys, "overlap", *(tmp_path / method / "region.safetensors" for method in found))["pairs"]
    assert 0 <= pair["iou"] < 1
    assert 0 < pair["chance"] < pair["size_cap"] <= 1


def test_overlap_of_heads(checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, words in (("a", prompts), ("b", make_prompts(tmp_path / "other.jsonl", "take", 3))):
        options = ("--prompts", words, "--method", "ships", "--fraction", "0.25", "--out", tmp_path / name)
        printed(capsys, "locate", checkpoint, *options)
        files.append(tmp_path / name / "region.safetensors")
    [pair] = value(capsys, "overlap", *files)["pairs"]
    units = pair["units"]
    assert (units["granularity"], units["union"] + units["intersection"]) == ("head", 4)  # 2 of 8 each
    assert units["iou"] == units["intersection"] / units["union"]
    assert units["chance"] == pytest.approx((12 / 28) * (1 / 3) + 1 / 28)  # one shared, or both
    text = printed(capsys, "overlap", *files)
    assert "weights" in text
    assert "heads" in text


def test_overlap_beside_its_ceiling(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = make_prompts(tmp_path / "other.jsonl", "take", 4)
    files = []
    for name, words in (("a", prompts), ("b", others)):
        options = ("--prompts", words, "--method", "wanda", "--fraction", "0.1", "--out", tmp_path / name)
        printed(capsys, "locate", checkpoint, *options)
        files.append(tmp_path / name / "region.safetensors")
    sizes = ("--sizes", "1", "--sizes", "2")
    options = ("--ceiling", checkpoint, "--splits", "2", *sizes, "--prompts", prompts, "--prompts", others)
    out = tmp_path / "overlap"
    text = printed(capsys, "overlap", *files, *options, "--out", out)
    assert "Overlap at half the prompts" in text
    assert "Disjoint samples of the prompts" in text
    report = value(capsys, "overlap", *files, *options, "--out", out)
    assert report == json.loads((out / "overlap.json").read_text())
    [pair] = report["pairs"]
    assert pair["corrected"]["splits"] == 2
    assert [one["splits"] for one in report["ceilings"]] == [2, 2]
    assert report["regions"][1]["cells"] == json.loads((tmp_path / "b" / "region.json").read_text())["cells"]
    assert [[row["prompts"] for row in rows] for rows in report["convergence"]] == [[1, 2], [1, 2]]
    assert pair["prompts"]["same_set"] is False
    assert "Shared prompts are unknown for 1 pairs" in printed(capsys, "overlap", *files)
    with pytest.raises(SystemExit) as stopped:
        main(["overlap", *map(str, (*files, *options))])
    assert stopped.value.code == 2
    assert "give a folder with --out" in capsys.readouterr().err
    page = Path(value(capsys, "report", out)["report"]).read_text()
    for figure in ("between", "difference-1-2", "parts-1-2", "convergence"):
        assert f'id="figure-{figure}"' in page


def test_locate_leaves_out_what_utility_needs(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = make_prompts(tmp_path / "answers.jsonl", "say", 3, response="the kettle")
    options = ("--prompts", prompts, "--method", "wanda", "--fraction", "0.1", "--utility", answers)
    refined = value(capsys, "locate", checkpoint, *options, "--out", tmp_path / "a")
    removed = refined["refinement"]["removed"]
    assert 0 < removed == refined["eligible"] // 10 - refined["actual"]
    assert "located weights are needed for utility" in printed(
        capsys, "locate", checkpoint, *options, "--out", tmp_path / "a"
    )
    found = (tmp_path / "a" / name for name in ("region.safetensors", "utility-0.safetensors"))
    [pair] = value(capsys, "overlap", *found)["pairs"]
    assert pair["intersection"] == 0
    filled = value(capsys, "locate", checkpoint, *options, "--refill", "--out", tmp_path / "b")
    assert (filled["actual"], filled["refinement"]["removed"]) == (refined["eligible"] // 10, removed)


def test_locate_counts_all_parameters(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = sum(parameter.numel() for parameter in open_model(checkpoint).model.parameters())
    options = ("--prompts", prompts, "--method", "magnitude", "--fraction", "0.013", "--of-all")
    found = value(capsys, "locate", checkpoint, *options, "--out", tmp_path / "a")
    assert found["actual"] == math.floor(Fraction("0.013") * parameters) > math.floor(0.013 * found["eligible"])
    refused = ((("--method", "neurons"), "for methods that score weights"), (("--fraction", "1"), "ask for less"))
    for more, told in refused:
        with pytest.raises(SystemExit) as stopped:
            main(["locate", str(checkpoint), *map(str, options), *more, "--out", str(tmp_path / "b")])
        assert (stopped.value.code, told in " ".join(capsys.readouterr().err.split())) == (2, True)


def test_locate_streams(checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, more in (("memory", ()), ("streamed", ("--stream",))):
        options = ("--prompts", prompts, "--method", "wanda", "--fraction", "0.1", *more)
        printed(capsys, "locate", checkpoint, *options, "--out", tmp_path / out)
    written = [(tmp_path / out / "region.safetensors").read_bytes() for out in ("memory", "streamed")]
    assert written[0] == written[1]
    with pytest.raises(SystemExit) as stopped:
        main(["locate", str(checkpoint), "--prompts", str(prompts), "--stream", "--out", str(tmp_path / "esi")])
    assert stopped.value.code == 1
    assert "open it without" in capsys.readouterr().err


def test_locate_compares_with_a_base_and_an_adapter(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    adapted(tiny_lm(), tmp_path / "adapter")
    given = {
        "delta": [f"base={base}"],
        "nlsr": [f"adapter={tmp_path / 'adapter'}", "directions=0.5"],
        "safe_lora": [f"base={base}", f"adapter={tmp_path / 'adapter'}", "exact_projector=true"],
    }
    for method, settings in given.items():
        options = ["--prompts", prompts, "--method", method, *(word for one in settings for word in ("--setting", one))]
        found = value(capsys, "locate", checkpoint, *options, "--fraction", "0.1", "--out", tmp_path / method)
        assert found["actual"] == found["eligible"] // 10
    recorded = Region.load(tmp_path / "safe_lora" / "region.safetensors").metadata.settings
    assert recorded["exact_projector"] is True
    assert isinstance(recorded["cosines"], dict)
    assert len(recorded["cosines"]) == 14


def test_patch(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, changed = open_model(checkpoint), open_model(checkpoint)
    with torch.no_grad():
        next(changed.model.parameters()).view(-1)[3:5] += 1
    patch = Patch.between(base.model, changed.model, base=Origin(source="tiny", name="tiny"))
    patch.save(tmp_path / "patch.safetensors")
    assert value(capsys, "patch", "info", tmp_path / "patch.safetensors")["entries"] == 2
    same = value(capsys, "patch", "diff", tmp_path / "patch.safetensors", tmp_path / "patch.safetensors")
    assert (same["shared"], same["same"], same["different"]) == (2, 2, 0)
    applied, reverted = tmp_path / "applied", tmp_path / "reverted"
    printed(capsys, "patch", "apply", checkpoint, tmp_path / "patch.safetensors", "--out", applied)
    assert weights(applied) != weights(checkpoint)
    printed(capsys, "patch", "revert", applied, tmp_path / "patch.safetensors", "--out", reverted)
    assert weights(reverted) == weights(checkpoint)


def test_merge(checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted(tiny_lm(), tmp_path / "adapter")
    printed(capsys, "locate", checkpoint, "--method", "magnitude", "--prompts", prompts, "--out", tmp_path / "region")
    call = ["merge", checkpoint, tmp_path / "adapter", "--protect", tmp_path / "region" / "region.safetensors"]
    found = value(capsys, *call, "--out", tmp_path / "merged")
    assert 0 < found["kept"] <= found["protected"]
    assert weights(tmp_path / "merged") != weights(checkpoint)
    call = ["merge", checkpoint, tmp_path / "adapter", "--safe-lora", tmp_path / "merged", "--threshold", "1"]
    found = value(capsys, *call, "--out", tmp_path / "safe")
    assert 0 < found["projected"] == found["modules"] - found["undefined"]
    assert weights(tmp_path / "safe") not in (weights(tmp_path / "merged"), weights(checkpoint))
    with pytest.raises(SystemExit, match="2"):
        main([str(part) for part in [*call[:3], "--out", tmp_path / "no"]])
    protected = [*call[:3], "--protect", tmp_path / "region" / "region.safetensors"]
    with pytest.raises(SystemExit, match="2"):
        main([str(part) for part in [*protected, "--threshold", "0.5", "--out", tmp_path / "no"]])
    assert "give --safe-lora BASE too" in capsys.readouterr().err
    before = weights(tmp_path / "safe")
    with pytest.raises(SystemExit):
        main([str(part) for part in ["merge", tmp_path / "none", *protected[2:], "--out", tmp_path / "safe"]])
    assert "is not empty" in capsys.readouterr().err  # before the model is even looked for
    assert weights(tmp_path / "safe") == before


def test_merge_checks_the_region_before_the_patch(
    checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patch to the weights that the region was located on does not make it a region of the base."""
    adapted(tiny_lm(), tmp_path / "adapter")
    other = open_model(checkpoint)
    with torch.no_grad():
        other.model.get_parameter("model.layers.0.mlp.up_proj.weight").add_(1)
    export(other, None, tmp_path / "other")
    patch = Patch.between(open_model(checkpoint).model, other.model, base=Origin(source="tiny", name="tiny"))
    patch.save(tmp_path / "patch.safetensors")
    out = tmp_path / "region"
    printed(capsys, "locate", tmp_path / "other", "--method", "magnitude", "--prompts", prompts, "--out", out)
    call = ["merge", checkpoint, tmp_path / "adapter", "--protect", out / "region.safetensors"]
    with pytest.raises(SystemExit):
        main([str(part) for part in [*call, "--patch", tmp_path / "patch.safetensors", "--out", tmp_path / "no"]])
    assert "holds other values" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_lists(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_prompts(tmp_path / "mine.jsonl", "make", 1)
    monkeypatch.setenv("BALLAST_DATA", str(tmp_path))
    assert list(value(capsys, "sets")) == ["mine"]
    assert {row["name"] for row in value(capsys, "methods")} >= {"esi", "snip", "gradient", "magnitude", "random"}
