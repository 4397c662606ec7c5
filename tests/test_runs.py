"""Files that are whole or absent, and lines that survive a cut."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from ballast.errors import RunError
from ballast.runs import (
    JsonLines,
    read_json,
    replacing,
    sha256_file,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)


def no_space(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestAtomicFiles:
    def test_content_arrives_and_folders_are_made(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "file"
        write_bytes(path, b"old")
        write_bytes(path, b"\x00new")
        assert path.read_bytes() == b"\x00new"
        assert names(path.parent) == ["file"]

    def test_text_is_utf8_with_its_own_line_ends(self, tmp_path: Path) -> None:
        write_text(tmp_path / "file", "ä\r\nö\n")
        assert (tmp_path / "file").read_bytes() == b"\xc3\xa4\r\n\xc3\xb6\n"

    @pytest.mark.parametrize("failing", [(os, "fsync"), (Path, "write_bytes"), (Path, "replace")])
    def test_no_space_leaves_the_old_content(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[Any, str]
    ) -> None:
        path = tmp_path / "file"
        write_bytes(path, b"old")
        monkeypatch.setattr(*failing, no_space)
        with pytest.raises(RunError, match=r"file \(No space left on device\); free some disk space"):
            write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["file"]

    def test_half_written_files_are_taken_away(self, tmp_path: Path) -> None:
        write_bytes(tmp_path / "bytes", b"old")
        with at_most(1000), pytest.raises(RunError, match="bytes"):
            write_bytes(tmp_path / "bytes", b"x" * 10_000)
        with at_most(1000), pytest.raises(RunError, match="tensors"):
            write_tensors(tmp_path / "tensors", {"a": torch.zeros(10_000)}, {})
        assert names(tmp_path) == ["bytes"]
        assert (tmp_path / "bytes").read_bytes() == b"old"

    def test_any_other_error_in_the_block_passes_and_leaves_nothing(self, tmp_path: Path) -> None:
        def fail_halfway() -> None:
            with replacing(tmp_path / "file") as temporary:
                temporary.write_bytes(b"half")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_halfway()
        assert names(tmp_path) == []

    def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(self, tmp_path: Path) -> None:
        write_bytes(tmp_path / "file", b"old")
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half of the ne")
            assert (tmp_path / "file").read_bytes() == b"old"
            temporary.write_bytes(b"new")
        assert (tmp_path / "file").read_bytes() == b"new"

    def test_a_file_where_a_folder_is_needed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(RunError, match="choose another folder"):
            write_bytes(tmp_path / "file" / "inner", b"new")

    def test_tensors_come_back_bit_for_bit(self, tmp_path: Path) -> None:
        tensors = {"transposed": torch.arange(6.0).reshape(2, 3).T, "half": torch.tensor([0.1], dtype=torch.bfloat16)}
        write_tensors(tmp_path / "t.safetensors", tensors, {"about": "test"})
        with safe_open(tmp_path / "t.safetensors", framework="pt") as opened:
            assert opened.metadata() == {"about": "test"}
            for name, tensor in tensors.items():
                assert torch.equal(opened.get_tensor(name), tensor)
                assert opened.get_tensor(name).dtype == tensor.dtype

    def test_json_comes_back_and_not_a_number_is_refused(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"ä": [1, 0.1, None]})
        assert read_json(tmp_path / "a.json") == {"ä": [1, 0.1, None]}
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "a.json", {"loss": float("nan")})
        assert read_json(tmp_path / "a.json") == {"ä": [1, 0.1, None]}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "does not exist"),
            (b'{"a": ', "is not valid JSON"),
            (b"\xff", "is not valid JSON"),
        ],
    )
    def test_unreadable_json(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "a.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RunError, match=rf"a\.json {message}"):
            read_json(path)

    def test_a_folder_is_no_json(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"Cannot read .*Is a directory"):
            read_json(tmp_path)

    def test_sha256_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-4
        assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        (tmp_path / "b").write_bytes(bytes(range(256)) * 5000)
        assert sha256_file(tmp_path / "b") == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


ROWS = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=3), max_size=6
)


class TestJsonLines:
    def test_rows_are_kept_between_openings(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "rows.jsonl"
        first = JsonLines(path)
        assert first.rows == []
        assert not path.exists()
        first.append([{"id": "a"}])
        first.append([{"id": "b", "text": "two\nlines \u2028 ä"}, {"id": "c"}])
        assert (
            JsonLines(path).rows == first.rows == [{"id": "a"}, {"id": "b", "text": "two\nlines \u2028 ä"}, {"id": "c"}]
        )
        assert path.read_bytes().count(b"\n") == 3

    @given(rows=ROWS, data=st.data())
    def test_cut_anywhere_the_whole_rows_before_the_cut_remain(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], data: st.DataObject
    ) -> None:
        content = JsonLines.text(rows).encode()
        cut = data.draw(st.integers(0, len(content)))
        path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
        path.write_bytes(content[:cut])
        lines = JsonLines(path)
        assert lines.rows == rows[: content[:cut].count(b"\n")]
        lines.append([{"id": "next"}])
        assert JsonLines(path).rows == lines.rows == [*rows[: content[:cut].count(b"\n")], {"id": "next"}]

    @pytest.mark.parametrize("damaged", [b'{"id": \n', b"\n", b"\xff\n", b"\0\0\0\n", b"3\n"])
    def test_a_damaged_line_in_the_middle_is_named(self, tmp_path: Path, damaged: bytes) -> None:
        content = b'{"id": "a"}\n' + damaged + b'{"id": "b"}\n{"id"'
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"rows\.jsonl line 2 is damaged"):
            JsonLines(path)
        assert path.read_bytes() == content

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"Cannot read .*Is a directory"):
            JsonLines(tmp_path)

    def test_keep_drops_rows_from_the_file_too(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        lines = JsonLines(path)
        lines.append([{"step": step} for step in range(5)])
        lines.keep(lambda row: row["step"] < 3)
        lines.append([{"step": 9}])
        assert [row["step"] for row in lines.rows] == [row["step"] for row in JsonLines(path).rows] == [0, 1, 2, 9]

    def test_not_a_number_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        lines = JsonLines(tmp_path / "rows.jsonl")
        with pytest.raises(ValueError, match="JSON"):
            lines.append([{"loss": 1.0}, {"loss": float("inf")}])
        assert lines.rows == []
        assert not lines.path.exists()

    def test_no_space_is_an_error_and_the_next_opening_mends_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        lines = JsonLines(path)
        lines.append([{"id": "a"}])
        with at_most(1000), pytest.raises(RunError, match=r"rows\.jsonl \(File too large\); free some disk space"):
            lines.append([{"id": "b", "text": "x" * 10_000}])
        assert lines.rows == [{"id": "a"}]
        assert path.stat().st_size == 1000  # half a row
        assert JsonLines(path).rows == [{"id": "a"}]
        assert path.read_text() == '{"id": "a"}\n'


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_readable_as_the_user_wants(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
