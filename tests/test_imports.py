"""Data flows one way through the house, and so do imports."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ballast

HOUSE = Path(ballast.__path__[0])
FOUNDATIONS = {"errors", "progress", "runs", "shards"}
ROOTS = {"cli", "pipeline", "report"}  # may import everything; nobody else imports them
PUBLIC_FACE = {"__init__", "__main__"}


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


ROOMS = {room_of(path) for path in HOUSE.rglob("*.py")}


def imported_rooms(tree: ast.AST, rooms: set[str]) -> set[str]:
    """The rooms that a module imports from, also within functions; `__init__` stands for the public names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "ballast":
            modules = [f"ballast.{alias.name}" if alias.name in rooms else "ballast" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules = [node.module or ""]
        else:
            continue
        paths = [module.split(".") for module in modules]
        found.update(path[1] if len(path) > 1 else "__init__" for path in paths if path[0] == "ballast")
    return found


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = defaultdict(set)
    for path in HOUSE.rglob("*.py"):
        room = room_of(path)
        graph[room] |= imported_rooms(ast.parse(path.read_text(encoding="utf-8")), ROOMS) - {room}
    return graph


def test_the_reader_of_imports_sees_every_form() -> None:
    source = """
import ballast.tune.sparse
from ballast import runs, harden
from ballast.locate.engine import x
def f():
    from ballast.report import y
import torch, ballast.patches as p
"""
    found = imported_rooms(ast.parse(source), {"tune", "runs", "locate", "report", "patches"})
    assert found == {"tune", "runs", "__init__", "locate", "report", "patches"}


@pytest.mark.parametrize("room", sorted(FOUNDATIONS))
def test_foundations_know_only_each_other(imports: dict[str, set[str]], room: str) -> None:
    assert imports[room] <= FOUNDATIONS


@pytest.mark.parametrize("room", ["models", "prompts"])
def test_models_and_prompts_know_nobody(imports: dict[str, set[str]], room: str) -> None:
    assert imports[room] <= FOUNDATIONS


@pytest.mark.parametrize(("room", "stranger"), [("locate", "tune"), ("regions", "locate")])
def test_no_way_back(imports: dict[str, set[str]], room: str, stranger: str) -> None:
    assert stranger not in imports[room]


def test_a_study_knows_what_locates_and_compares(imports: dict[str, set[str]]) -> None:
    assert imports["study"] <= FOUNDATIONS | {"locate", "regions", "prompts", "models", "patches"}


def test_only_the_roots_know_everybody(imports: dict[str, set[str]]) -> None:
    for room in ROOMS - ROOTS - PUBLIC_FACE:
        assert not imports[room] & (ROOTS | PUBLIC_FACE), room


def test_no_two_rooms_import_each_other(imports: dict[str, set[str]]) -> None:
    try:
        list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(f"rooms import in a circle: {' -> '.join(error.args[1])}")
