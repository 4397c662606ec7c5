"""The model card of a patch: the run's numbers and no others, plain text everywhere, and what is missing is said."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from ballast import open_model
from ballast.errors import PatchError, RunError, UsageError
from ballast.models.fingerprint import fingerprints
from ballast.patches import Origin
from ballast.report import patch_card
from ballast.runs import read_json, sha256_file, write_json
from tests.e2e.world import make_checkpoint
from tests.patches.world import changed_copy, patch_of
from tests.report.artefacts import MODEL, make_run

NASTY = "a|b\n\n# Title <script>alert(1)</script> [x](http://x) `code` *so* $y$ &amp; \\| {{ 7 * 7 }}"
PLAIN = " ".join(NASTY.split())


def make_patch(folder: Path, **changes: object) -> Path:
    """A small patch that says it is for the model of the made-up run."""
    patch = patch_of()
    header = patch.header.model_copy(update={"parameters": MODEL["parameters"], **changes})
    dataclasses.replace(patch, header=header).save(folder / "patch.safetensors")
    return folder / "patch.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run")
    make_patch(folder)
    return folder


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table of a card, by the rules of Markdown."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and token.level == 4 and found:
            found[-1][-1].append("".join(child.content for child in token.children or ()))
    return found


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def in_points(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f}".replace("-", "\N{MINUS SIGN}")


class TestNumbers:
    def test_every_measured_set_and_nothing_else(self, run: Path) -> None:
        comparison = read_json(run / "comparison.json")
        rates, utility, _ = tables(patch_card(run / "patch.safetensors", run).text)
        expected = [
            [
                row["name"],
                {"safety": "attack success", "over_refusal": "over-refusal"}[row["axis"]],
                *(
                    f"{in_points(side['rate'])} % [{in_points(side['low'])}, {in_points(side['high'])}]"
                    for side in (row["before"], row["after"])
                ),
                f"{in_points(row['difference'], '+')} [{in_points(row['low'])}, {in_points(row['high'])}]",
                str(row["n"]),
            ]
            for row in comparison["sets"]
        ]
        assert [[*row[:5], row[6]] for row in rates[1:]] == expected
        assert [row[0] for row in utility[1:]] == [row["name"] for row in comparison["utility"]]
        likelihood = comparison["utility"][0]
        assert utility[1][2] == f"{likelihood['before']:.4f}".replace("-", "\N{MINUS SIGN}")
        assert utility[1][5] == str(likelihood["n"])

    def test_without_a_comparison_each_measurement_stands_alone(self, run: Path) -> None:
        (run / "comparison.json").unlink()
        made = patch_card(run / "patch.safetensors", run, license_id="mit")
        rates, _, _ = tables(made.text)
        summaries = {stage: read_json(run / stage / "summary.json")["sets"] for stage in ("before", "after")}
        expected = [
            [row["name"], stage, f"{in_points(row['rate'])} % [{in_points(row['low'])}, {in_points(row['high'])}]"]
            for stage, rows in summaries.items()
            for row in rows
        ]
        assert [[row[0], row[2], row[3]] for row in rates[1:]] == expected
        assert made.missing == ("The two measurements were not compared prompt by prompt.",)

    def test_identity(self, run: Path) -> None:
        path = run / "patch.safetensors"
        summary = read_json(run / "before" / "summary.json")
        summary["model"]["fingerprint"] = "ab" * 32
        write_json(run / "before" / "summary.json", summary)
        told = section(patch_card(path, run).text, "Identity")
        assert sha256_file(path) in told
        assert "ab" * 32 in told
        assert "| lr | 0.1 |" in told

    def test_metadata(self, run: Path) -> None:
        path = run / "patch.safetensors"
        data = ModelCard(patch_card(path, run, license_id="apache-2.0").text).data
        assert data.to_dict() == {"license": "apache-2.0", "base_model": "owner/tiny"}
        given = ModelCard(patch_card(path, run, license_id="x: y\n---\n# z", base_model="other/one").text)
        assert given.data.to_dict() == {"license": "x: y\n---\n# z", "base_model": "other/one"}
        assert "ballast patch apply other/one patch.safetensors" in given.text


class TestMissing:
    def test_nothing_but_the_patch(self, run: Path) -> None:
        path = make_patch(run, base=Origin(source="/home/somebody/model", name="model"))
        made = patch_card(path)
        assert not made.text.startswith("---")
        assert "Nothing was measured." in section(made.text, "Measured")
        assert len(made.missing) == 3
        assert all(f"- {sentence}" in section(made.text, "Missing") for sentence in made.missing)
        assert "somebody" not in made.text
        assert "%" not in section(made.text, "Measured")

    def test_whole_run(self, run: Path) -> None:
        made = patch_card(run / "patch.safetensors", run, license_id="mit")
        assert made.missing == ()
        assert "## Missing" not in made.text

    def test_parts_of_a_run(self, run: Path, tmp_path: Path) -> None:
        path = shutil.copy(run / "patch.safetensors", tmp_path)
        (run / "patch.safetensors").unlink()
        (run / "comparison.json").unlink()
        shutil.rmtree(run / "after")
        summary = read_json(run / "before" / "summary.json")
        summary["utility"], summary["sets"] = [], [row for row in summary["sets"] if row["axis"] == "safety"]
        write_json(run / "before" / "summary.json", summary)
        assert patch_card(path, run, license_id="mit").missing == (
            "The run does not hold this patch, so nothing but its author's word ties the numbers to it.",
            "The two measurements were not compared prompt by prompt.",
            "Not measured before the patch: over-refusal.",
            "Not measured before the patch: utility.",
            "The model was not measured after the patch.",
        )


class TestText:
    def test_names_and_settings_are_plain_text(self, run: Path) -> None:
        comparison = read_json(run / "comparison.json")
        comparison["sets"][0]["name"] = NASTY
        write_json(run / "comparison.json", comparison)
        path = make_patch(run, base=Origin(source=NASTY, name=NASTY), settings={NASTY: NASTY, "none": None})
        text = patch_card(path, run).text
        rates, _, settings = tables(text)
        assert rates[1][0] == PLAIN
        assert settings[1:] == [[PLAIN, PLAIN], ["none", "not set"]]
        parsed = MarkdownIt("commonmark").enable("table").parse(text)
        assert [token.tag for token in parsed if token.type == "heading_open"] == ["h1"] + 5 * ["h2"]
        assert not [token for token in parsed if token.type == "html_block"]
        kinds = {child.type for token in parsed for child in token.children or ()}
        assert kinds <= {"text", "text_special", "softbreak"}

    def test_what_it_says_to_do_works(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_checkpoint(tmp_path / "BASE")
        shutil.copy(
            make_patch(run, base=Origin(source="/somewhere/tiny", name="tiny")), tmp_path / "my patch.safetensors"
        )
        monkeypatch.chdir(tmp_path)
        text = patch_card("my patch.safetensors", run).text
        assert "Put the folder of the base in the place of BASE." in text
        [python] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        names: dict[str, Any] = {}
        exec(python, names)
        changed = changed_copy("llama", open_model("BASE").model.dtype)
        assert fingerprints(names["lm"].model) == fingerprints(changed)
        assert "ballast patch apply BASE 'my patch.safetensors' --out FOLDER" in text


class TestRefused:
    def test_the_run_of_another_patch(self, run: Path, tmp_path: Path) -> None:
        patch_of(seed=2).save(tmp_path / "other.safetensors")
        with pytest.raises(RunError, match="holds another patch"):
            patch_card(tmp_path / "other.safetensors", run)

    def test_the_run_of_another_model(self, run: Path) -> None:
        make_patch(run, parameters=99)
        with pytest.raises(RunError, match="measured a model of 134515008 weights and the patch is for one of 99"):
            patch_card(run / "patch.safetensors", run)

    def test_a_run_that_fine_tuned(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run", command="finetune_and_measure")
        with pytest.raises(RunError, match="not those of a patch"):
            patch_card(make_patch(run), run)

    def test_bad_files(self, run: Path, tmp_path: Path) -> None:
        path = run / "patch.safetensors"
        with pytest.raises(RunError, match="is not a folder"):
            patch_card(path, tmp_path / "none")
        with pytest.raises(UsageError, match="give owner/name"):
            patch_card(path, run, base_model="no id")
        (run / "comparison.json").write_text("{")
        with pytest.raises(RunError, match="not valid JSON"):
            patch_card(path, run)
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(PatchError, match="is damaged"):
            patch_card(path, run)


def test_two_calls_give_the_same_card(run: Path) -> None:
    assert patch_card(run / "patch.safetensors", run) == patch_card(run / "patch.safetensors", run)
