"""Prompt sets by name, from files and from the hub: what arrives, and what each fault says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ballast.errors import PromptError
from ballast.prompts import Prompt, available_sets, load_prompts
from ballast.prompts.load import BUILTIN_KINDS, SPLITS, UNSPLIT_KINDS

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "Ü, \u2028?", "category": "x", "response": "no", "source": "own"},
    {"id": "b", "prompt": 'two\nlines, "quoted"', "category": None, "response": None, "source": None},
]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestFiles:
    def test_each_format_gives_the_same_prompts(self, tmp_path: Path) -> None:
        (tmp_path / "c.csv").write_text(
            'id,category,prompt,response,source\na,x,"Ü, \u2028?",no,own\nb,,"two\nlines, ""quoted""",,\n',
            encoding="utf-8",
        )
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "p.parquet")
        expected = tuple(Prompt(**row) for row in ROWS)
        assert load_prompts(jsonl(tmp_path / "j.jsonl", *ROWS)).prompts == expected
        assert load_prompts(tmp_path / "c.csv").prompts == expected
        assert load_prompts(str(tmp_path / "p.parquet")).prompts == expected

    def test_the_set_is_named_after_the_file(self, tmp_path: Path) -> None:
        assert load_prompts(jsonl(tmp_path / "my set.jsonl", *ROWS)).name == "my set"

    def test_a_row_without_id_gets_one_and_other_fields_are_ignored(self, tmp_path: Path) -> None:
        prompts = load_prompts(jsonl(tmp_path / "f.jsonl", {"prompt": "p", "more": 1}, {"prompt": "q", "id": None}))
        assert [prompt.id for prompt in prompts] == ["f-00000", "f-00001"]
        (tmp_path / "g.csv").write_text("id,prompt\n,p\nown,q\n")
        assert [prompt.id for prompt in load_prompts(tmp_path / "g.csv")] == ["g-00000", "own"]

    @pytest.mark.parametrize("name", ["f.jsonl", "f.csv"])
    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path, name: str) -> None:
        text = {"f.jsonl": '{"prompt": "p"}\n', "f.csv": "prompt\np\n"}[name]
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load_prompts(tmp_path / name)[0].prompt == "p"

    def test_blank_lines_are_skipped_and_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "f.jsonl"
        path.write_text('\n{"prompt": "p"}\n\n{"prompt": 3}\n')
        with pytest.raises(PromptError, match="line 4: field 'prompt'"):
            load_prompts(path)

    @pytest.mark.parametrize(
        ("second_line", "message"),
        [
            ('{"prompt": "q"', "line 2 is not valid JSON"),
            ("prompt", "line 2 is not valid JSON"),
            ('["q"]', "line 2 is not a JSON object"),
            ('{"id": "b"}', "line 2: field 'prompt': field required"),
            ('{"prompt": ""}', "line 2: field 'prompt': .*at least 1 character"),
            ('{"prompt": null}', "line 2: field 'prompt': .*valid string"),
            ('{"prompt": "\\ud800"}', "line 2: field 'prompt'"),
            ('{"prompt": "q", "response": 3}', "line 2: field 'response'"),
        ],
    )
    def test_a_malformed_line_is_named(self, tmp_path: Path, second_line: str, message: str) -> None:
        path = tmp_path / "f.jsonl"
        path.write_text(f'{{"prompt": "p"}}\n{second_line}\n{{"prompt": "r"}}\n')
        with pytest.raises(PromptError, match=rf"f\.jsonl {message}"):
            load_prompts(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("id,text\na,p\n", "has no column `prompt`"),
            ("id,prompt\na,p\nb\n", "line 3: field 'prompt'"),
            ("id,prompt\na,p\nb,first, second\n", "line 3 has more fields than columns"),
            ('id,prompt\na,"two\nlines"\nb,\n', "line 4: field 'prompt'"),
            ('id,prompt\na,p\nb,"never ends\n', "line 3 is not valid CSV"),
        ],
    )
    def test_malformed_csv(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "f.csv").write_text(content)
        with pytest.raises(PromptError, match=rf"f\.csv {message}"):
            load_prompts(tmp_path / "f.csv")

    def test_malformed_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "f.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "p"}, {"prompt": None}]), path)
        with pytest.raises(PromptError, match=r"f\.parquet row 2: field 'prompt'"):
            load_prompts(path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(PromptError, match=r"Cannot read the prompt file .*f\.parquet"):
            load_prompts(path)

    @pytest.mark.parametrize(("name", "content"), [("f.jsonl", "\n\n"), ("f.csv", ""), ("f.csv", "prompt\n")])
    def test_an_empty_file(self, tmp_path: Path, name: str, content: str) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(PromptError, match=r"f\.\w+ holds no prompts; give a file with at least one row"):
            load_prompts(tmp_path / name)

    def test_repeated_ids(self, tmp_path: Path) -> None:
        with pytest.raises(PromptError, match="has the id 'a' twice"):
            load_prompts(jsonl(tmp_path / "f.jsonl", ROWS[0], ROWS[1], ROWS[0]))

    @pytest.mark.parametrize("name", ["f.jsonl", "f.csv"])
    def test_bytes_that_are_not_utf8(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"prompt\n\xff\n")
        with pytest.raises(PromptError, match="Cannot read the prompt file"):
            load_prompts(tmp_path / name)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(PromptError, match="does not exist"):
            load_prompts(tmp_path / "f.jsonl")


class TestNames:
    @pytest.fixture
    def data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("BALLAST_DATA", str(tmp_path))
        jsonl(tmp_path / "safety" / "wolf_bench.jsonl", *ROWS)
        jsonl(tmp_path / "sheep_bench.jsonl", *ROWS)
        (tmp_path / "safety" / "table.csv").write_text("prompt\np\n")
        (tmp_path / "SOURCES.md").write_text("not a set")
        return tmp_path

    def test_every_file_of_the_folder_has_its_name(self, data: Path) -> None:
        assert set(available_sets()) == {"wolf_bench", "sheep_bench", "table"}
        assert load_prompts("wolf_bench").name == "wolf_bench"
        assert load_prompts("wolf_bench").prompts == tuple(Prompt(**row) for row in ROWS)
        assert load_prompts("table")[0].prompt == "p"

    def test_an_unknown_name_offers_near_ones(self, data: Path) -> None:
        with pytest.raises(PromptError, match=r"no prompt set 'wolfbench'; did you mean wolf_bench[,?]"):
            load_prompts("wolfbench")

    def test_two_files_of_one_name(self, data: Path) -> None:
        jsonl(data / "other" / "wolf_bench.jsonl", *ROWS)
        with pytest.raises(PromptError, match="rename one"):
            load_prompts("wolf_bench")

    @pytest.mark.parametrize("value", [None, "", "/does/not/exist"])
    def test_without_a_folder_the_error_says_how_to_name_one(
        self, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        monkeypatch.delenv("BALLAST_DATA", raising=False)
        if value is not None:
            monkeypatch.setenv("BALLAST_DATA", value)
        assert available_sets() == {}
        with pytest.raises(PromptError, match="named sets need the variable BALLAST_DATA"):
            load_prompts("wolf_bench")

    @pytest.mark.parametrize("kind", BUILTIN_KINDS)
    def test_the_splits_of_a_builtin_set_make_up_the_whole(self, kind: str) -> None:
        whole = load_prompts(f"builtin/{kind}")
        assert whole.name == f"builtin/{kind}"
        if kind in UNSPLIT_KINDS:
            return
        held = SPLITS[: {"refusals": 1, "borderline": 2}.get(kind, 3)]
        splits = [load_prompts(f"builtin/{kind}/{split}") for split in held]
        assert [{prompt.split for prompt in part} for part in splits] == [{split} for split in SPLITS[: len(splits)]]
        assert sorted(p.id for part in splits for p in part) == sorted(p.id for p in whole)

    def test_refusals_join_their_prompts(self) -> None:
        harmful = {prompt.prompt: prompt for prompt in load_prompts("builtin/harmful/tune")}
        for row in load_prompts("builtin/refusals"):
            assert row.response
            assert row.pair == harmful[row.prompt].pair

    @pytest.mark.parametrize(
        ("spec", "near"),
        [
            ("builtin/harmfull", "builtin/harmful"),
            ("builtin/twins/tset", "builtin/twins/test"),
            ("builtin/answers/test", "builtin/answers"),
            ("builtin/", "builtin/"),
        ],
    )
    def test_an_unknown_builtin_set_offers_near_ones(self, spec: str, near: str) -> None:
        with pytest.raises(PromptError, match=rf"no set '{spec}'; did you mean .*{near}"):
            load_prompts(spec)


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """Stand-in for the package `datasets`; the list records what it was asked for."""
        asked: list[dict[str, Any]] = []
        package, errors = ModuleType("datasets"), ModuleType("datasets.exceptions")

        class DatasetsError(Exception):
            pass

        def load_dataset(name: str, **options: Any) -> list[dict[str, Any]]:
            asked.append({"name": name, **options})
            if name == "o/missing":
                raise DatasetsError("not on\nthe hub")
            return [{"prompt": "p"}, {"prompt": "q" if name == "o/n" else 3}]

        monkeypatch.setattr(package, "load_dataset", load_dataset, raising=False)
        monkeypatch.setattr(errors, "DatasetsError", DatasetsError, raising=False)
        monkeypatch.setitem(sys.modules, "datasets", package)
        monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)
        return asked

    def test_a_commit_and_a_split(self, asked: list[dict[str, Any]]) -> None:
        prompts = load_prompts(f"hf:o/n@{COMMIT}:test")
        assert [(prompt.id, prompt.prompt) for prompt in prompts] == [("n-00000", "p"), ("n-00001", "q")]
        assert prompts.name == f"hf:o/n@{COMMIT}:test"
        load_prompts("hf:o/n@0123456")
        assert asked == [
            {"name": "o/n", "revision": COMMIT, "split": "test"},
            {"name": "o/n", "revision": "0123456", "split": "train"},
        ]

    @pytest.mark.parametrize("spec", ["hf:o/n", "hf:o/n:test", "hf:o/n@main", "hf:o/n@", f"hf:n@{COMMIT}"])
    def test_without_a_commit_nothing_is_asked(self, asked: list[dict[str, Any]], spec: str) -> None:
        with pytest.raises(PromptError, match="names no commit; write hf:owner/name@COMMIT"):
            load_prompts(spec)
        assert asked == []

    @pytest.mark.usefixtures("asked")
    def test_faults_name_the_dataset(self) -> None:
        with pytest.raises(PromptError, match=f"Cannot load hf:o/missing@{COMMIT}: not on the hub"):
            load_prompts(f"hf:o/missing@{COMMIT}")
        with pytest.raises(PromptError, match=f"hf:o/bad@{COMMIT} row 2: field 'prompt'"):
            load_prompts(f"hf:o/bad@{COMMIT}")

    def test_without_the_package_the_error_names_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(PromptError, match=r"pip install 'ballast-llm\[hub\]'"):
            load_prompts(f"hf:o/n@{COMMIT}")
