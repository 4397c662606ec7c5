"""`ballast validate` on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ballast import Patch, locate, open_model
from ballast.patches import Origin
from ballast.regions import Region
from tests.cli.calls import printed, value
from tests.e2e.world import make_checkpoint, make_prompts
from tests.worlds import prompt_set

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def region(checkpoint: Path, tmp_path: Path) -> Path:
    found = locate(open_model(checkpoint), prompt_set("seen", ["How?"]), "random").select(0.05)
    found.save(tmp_path / "region.safetensors")
    return tmp_path / "region.safetensors"


@pytest.fixture
def sets(tmp_path: Path) -> list[str | Path]:
    bad, good = make_prompts(tmp_path / "bad.jsonl", "make", 3), make_prompts(tmp_path / "good.jsonl", "say", 2)
    answers = make_prompts(tmp_path / "answers.jsonl", "tell", 3, response="the kettle")
    fixed = ["--judge", "keyword", "--max-new-tokens", "2", "--random", "2"]
    return ["--safety", bad, "--overrefusal", good, "--utility", answers, *fixed]


def test_tables_and_verdicts(
    checkpoint: Path, region: Path, sets: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "validate", checkpoint, region, *sets, "--out", tmp_path / "v")
    assert "Necessity is not shown (set to 0, bad)" in text
    assert "Necessity is not shown (noise of 0.38, bad)" in text
    assert "It is not known which prompts the region was located on (seen); name them with --located-on." in text
    assert "no answer and no disturbed model was kept" in text
    found = value(capsys, "validate", checkpoint, region, *sets, "--out", tmp_path / "v")
    assert [(dose["intervention"], dose["dose"]) for dose in found["effects"]] == [("ablate", None), ("noise", 0.38)]
    assert [len(dose["safety"][0]["random"]) for dose in found["effects"]] == [2, 2]
    assert [one["shown"] for one in found["findings"]] == [False, False]
    assert not list((tmp_path / "v").rglob("*.safetensors"))


def test_every_disturbance(
    checkpoint: Path, region: Path, sets: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    asked = ["--noise", "0.1", "--noise", "1", "--scale", "0.5", "--transplant", other]
    found = value(capsys, "validate", checkpoint, region, *sets, *asked, "--out", tmp_path / "v")
    assert [(dose["question"], dose["intervention"], dose["dose"]) for dose in found["effects"]] == [
        ("necessity", "noise", 0.1),
        ("necessity", "noise", 1.0),
        ("necessity", "scale", 0.5),
        ("necessity", "transplant", None),
        ("sufficiency", "transplant", None),
    ]
    assert len(found["findings"]) == 4
    assert found["other"] == "other"
    page = Path(value(capsys, "report", tmp_path / "v")["report"]).read_text()
    for figure in ("rates-1-1", "rates-1-2", "utility-1-1", "rates-2", "degenerate-3", "utility-4"):
        assert f'id="figure-{figure}"' in page
    assert all(one["sentence"].partition(" (")[0] in page for one in found["findings"])


def test_a_patched_model_and_its_base(
    checkpoint: Path, region: Path, sets: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The patch changes nothing but the region, so a transplant of it is the whole difference."""
    lm, tuned = open_model(checkpoint), open_model(checkpoint)
    with torch.no_grad():
        for name, indices in Region.load(region).indices.items():
            tuned.model.get_parameter(name).view(-1)[indices.long()] += 0.5
    patch = Patch.between(lm.model, tuned.model, base=Origin(source="tiny", name="tiny"))
    patch.save(tmp_path / "patch.safetensors")
    asked = ["--patch", tmp_path / "patch.safetensors", "--transplant", checkpoint]
    found = value(capsys, "validate", checkpoint, region, *sets, *asked, "--out", tmp_path / "v")
    there, back = (dose["utility"][0] for dose in found["effects"])
    assert (there["undisturbed"], there["region"]) == (back["region"], back["undisturbed"])
    assert there["undisturbed"] != there["region"]
