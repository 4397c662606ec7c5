"""Grid files: what they may hold, and the sentence for each mistake."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ballast.errors import UsageError
from ballast.locate.esi import ExpectedSafetyImpact
from ballast.locate.neurons import Neurons
from ballast.locate.nlsr import Nlsr
from ballast.locate.snip import Snip
from ballast.study import StudyGrid
from ballast.study.named_files import named_files
from ballast.study.study import _bases_first

SETS = '[sets]\nsafety = ["advbench", "mine/own.jsonl"]\nutility = ["alpaca"]\n'
MODEL = '[models.small]\nmodel = "smollm2"\n'
METHOD = '[methods.snip]\nmethod = "snip"\nfraction = 0.02\n'
REFINED = 'refine = ["none", "subtract"]\n'


def loaded(folder: Path, text: str) -> StudyGrid:
    path = folder / "grid.toml"
    path.write_text(text)
    return StudyGrid.load(path)


def test_defaults_and_paths_beside_the_file(tmp_path: Path) -> None:
    model = '[models.small]\nmodel = "./tiny"\npatch = "../p.safetensors"\nfamily = "llama"\n'
    grid = loaded(tmp_path, SETS + model + METHOD)
    assert grid.sets.safety == ("advbench", str(tmp_path / "mine/own.jsonl"))
    assert grid.models["small"].model == str(tmp_path / "tiny")
    assert grid.models["small"].patch == tmp_path / "../p.safetensors"
    assert (grid.prompts, grid.seeds, grid.splits, grid.refine, grid.response) == (96, (0,), 1, ("none",), None)
    assert grid.methods["snip"].fractions == (0.02,)
    assert loaded(tmp_path, SETS + MODEL + METHOD).models["small"].model == "smollm2"


def test_sizes_settings_and_responses(tmp_path: Path) -> None:
    methods = """
[methods.units]
method = "neurons"
sizes = [0.01, 0.05]
scope = "per_layer"
refine = ["none"]
settings = { kinds = ["feed_forward", "query"] }
[methods.own]
method = "snip"
settings = { refusals = ["Never."] }
"""
    grid = loaded(tmp_path, 'response = "No."\n' + REFINED + SETS + MODEL + METHOD + methods)
    assert grid.methods["units"].fractions == (0.01, 0.05)
    assert grid.methods["units"].made(None, grid.response) == Neurons(kinds=("feed_forward", "query"))
    assert grid.methods["snip"].made(None, grid.response) == Snip(refusals=("No.",))
    assert grid.methods["own"].made(None, grid.response) == Snip(refusals=("Never.",))
    assert grid.methods["snip"].made(None, None) == Snip()
    assert grid.refinements("units") == ("none",)
    assert grid.refinements("snip") == ("none", "subtract")


def test_a_base_is_given_where_it_is_needed(tmp_path: Path) -> None:
    method = '[methods.nlsr]\nmethod = "nlsr"\n[methods.of_adapter]\nmethod = "nlsr"\nsettings = { adapter = "a" }\n'
    grid = loaded(tmp_path, SETS + MODEL + '[models.hard]\nmodel = "./hard"\nbase = "small"\n' + METHOD + method)
    assert grid.methods["nlsr"].needs_base
    assert grid.methods["nlsr"].made("smollm2", None) == Nlsr(base="smollm2")
    assert grid.methods["of_adapter"].made("smollm2", None) == Nlsr(adapter="a")
    assert not grid.methods["snip"].needs_base


BASED = '[models.hard]\nmodel = "hard"\nbase = "small"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompt = 3\n" + SETS + MODEL + METHOD, "there is no key prompt; did you mean prompts"),
        (SETS + MODEL + METHOD + "fractions = 1\n", "there is no key methods.snip.fractions; did you mean fraction"),
        (SETS + METHOD, "models is missing; give it"),
        (MODEL + METHOD + "[sets]\nsafety = []\n", "sets.safety: "),
        ("prompts = 0\n" + SETS + MODEL + METHOD, "prompts: input should be greater than 0; mend it"),
        (SETS + MODEL + METHOD.replace("0.02", "2"), "methods.snip.fraction: input should be less than or equal to 1"),
        ('refine = ["less"]\n' + SETS + MODEL + METHOD, r"refine.0: input should be 'none', 'subtract' or 'refill'"),
        ("prompts = \n" + SETS, "is not valid TOML"),
        (SETS + MODEL + METHOD.replace('"snip"', '"snipp"'), "'snipp', which is no method; did you mean snip"),
        (
            SETS + MODEL + METHOD + "settings = { rows = 1 }\n",
            "methods.snip.settings do not work: .*'rows'",
        ),
        (SETS + MODEL + METHOD + 'settings = { base = "x" }\n', "methods.snip.settings has base"),
        (SETS + MODEL + METHOD + "sizes = [0.1]\n", "methods.snip has both fraction and sizes"),
        (SETS + MODEL + METHOD + 'scope = "per_kind"\n', "methods.snip.scope is 'per_kind'; a weight has global"),
        (SETS + MODEL + METHOD.replace("snip", "neurons") + 'scope = "per_row"\n', "a neuron has per_kind"),
        (
            SETS + MODEL + '[methods.d]\nmethod = "delta"\n',
            "methods.d compares with a second checkpoint",
        ),
        (SETS + MODEL + METHOD + BASED.replace('"small"', '"smal"'), "no other model of the grid; did you mean small"),
        (SETS + MODEL + METHOD + BASED.replace('"small"', '"hard"'), "no other model of the grid"),
        (
            SETS + MODEL + 'revision = "v1"\n' + METHOD + BASED,
            "models.hard.base is 'small', which has a patch",
        ),
        ("seeds = [1, 1]\n" + SETS + MODEL + METHOD, "seeds has an entry twice"),
        (SETS.replace("alpaca", "advbench") + MODEL + METHOD, "sets has an entry twice"),
        (SETS + 'text = ["wiki"]\n' + MODEL + METHOD, "sets.text has 'wiki', which is not in sets.utility"),
        ('refine = ["subtract"]\n' + SETS + MODEL + METHOD, "add none to refine"),
        (REFINED + SETS.replace('["alpaca"]', "[]") + MODEL + METHOD, "is to be refined, and sets.utility is empty"),
    ],
)
def test_mistakes_are_named_with_their_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        loaded(tmp_path, text)
    assert "\n" not in str(caught.value).partition("(")[0]
    assert str(caught.value).endswith((".", "?"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read the grid .*No such file"):
        StudyGrid.load(tmp_path / "none.toml")


def test_bases_come_first_and_do_not_run_in_a_circle(tmp_path: Path) -> None:
    chain = '[models.c]\nmodel = "c"\nbase = "b"\n[models.b]\nmodel = "b"\nbase = "a"\n[models.a]\nmodel = "a"\n'
    assert _bases_first(loaded(tmp_path, SETS + chain + METHOD)) == ["a", "b", "c"]
    with pytest.raises(UsageError, match="cannot come before its own base"):
        loaded(tmp_path, SETS + chain + 'base = "c"\n' + METHOD)


def test_files_that_settings_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of a fixed choice names no file, even where one has this name."""
    monkeypatch.chdir(tmp_path)
    for name in ("mean", "frequency", "mine.jsonl"):
        (tmp_path / name).write_text(name)
    assert named_files(Neurons, {"selection": "mean"}) == {}
    found = named_files(ExpectedSafetyImpact, {"contrast": "mine.jsonl", "estimator": "mean", "samples": 4})
    assert found == {"contrast": hashlib.sha256(b"mine.jsonl").hexdigest()}
