"""Multiple-choice rows: what is valid, and how each kind of file holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from ballast.errors import PromptError
from ballast.prompts import Prompt, PromptSet, load_prompts

ROW: dict[str, Any] = {"id": "q", "prompt": "Which one?", "response": "two", "choices": ["one", "two", "drei, vier"]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"choices": ["two"]}, "at least 2"),
        ({"choices": ["two", "one", "two "]}, "the same"),
        ({"choices": ["two", " "]}, "empty"),
        ({"response": "three"}, "none of the choices"),
        ({"response": None}, "none of the choices"),
    ],
)
def test_invalid_choices(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Prompt.model_validate(ROW | changed)


def test_no_choices() -> None:
    assert Prompt(id="q", prompt="Which one?").choices is None
    assert Prompt.model_validate(ROW | {"choices": None}).choices is None


def test_each_kind_of_file_holds_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "b.csv").write_text(
        'id,prompt,response,choices\nq,Which one?,two,"[""one"", ""two"", ""drei, vier""]"\n'
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]), tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        assert load_prompts(tmp_path / name)[0] == Prompt.model_validate(ROW)


def test_faults_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "r", "response": "five"}) + "\n")
    with pytest.raises(PromptError, match=r"line 2: field 'choices'.*none of the choices"):
        load_prompts(path)
    path = tmp_path / "b.csv"
    path.write_text("prompt,response,choices\nWhich one?,two,one/two\n")
    with pytest.raises(PromptError, match="line 2: field 'choices' is not valid JSON"):
        load_prompts(path)


def test_the_hash_sees_choices_and_is_as_before_without_them() -> None:
    def hash_of(**fields: Any) -> str:
        return PromptSet("s", (Prompt.model_validate(ROW | fields),)).hash

    assert hash_of() != hash_of(choices=["two", "one", "drei, vier"]) != hash_of(choices=None)
