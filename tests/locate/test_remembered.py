"""What was measured is not measured again, in this call or the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ballast.errors import RunError
from ballast.locate.layers.remembered import Remembered


class Measured:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return 10 * self.calls


def test_a_value_is_measured_once() -> None:
    measure, remembered = Measured(), Remembered(None, "work")
    assert [remembered.value({"window": [1, 2]}, measure) for _ in range(3)] == [10, 10, 10]
    assert remembered.value({"window": [1, 3]}, measure) == 20
    assert measure.calls == 2


def test_the_order_of_circumstances_does_not_matter() -> None:
    measure, remembered = Measured(), Remembered(None, "work")
    assert remembered.value({"a": 1, "b": 2}, measure) == remembered.value({"b": 2, "a": 1}, measure) == 10


def test_a_later_call_reads_the_file(tmp_path: Path) -> None:
    measure, path = Measured(), tmp_path / "folder" / "windows"
    Remembered(path, "work").value({"window": [1, 2]}, measure)
    assert json.loads(path.read_text()) == {"work": "work", "of": {"window": [1, 2]}, "value": 10}
    again = Remembered(path, "work")
    assert again.value({"window": [1, 2]}, measure) == 10
    assert again.value({"window": [1, 3]}, measure) == 20
    assert len(path.read_text().splitlines()) == 2


def test_rows_of_other_work_are_neither_used_nor_lost(tmp_path: Path) -> None:
    measure, path = Measured(), tmp_path / "windows"
    Remembered(path, "one").value({"window": [1, 2]}, measure)
    assert Remembered(path, "other").value({"window": [1, 2]}, measure) == 20
    assert Remembered(path, "one").value({"window": [1, 2]}, measure) == 10


def test_an_error_is_not_remembered(tmp_path: Path) -> None:
    def fail() -> int:
        raise MemoryError

    remembered = Remembered(tmp_path / "windows", "work")
    with pytest.raises(MemoryError):
        remembered.value({}, fail)
    assert remembered.value({}, Measured()) == 10


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "windows"
    path.write_bytes(b"\x00\x01\n")
    with pytest.raises(RunError, match="damaged"):
        Remembered(path, "work")
