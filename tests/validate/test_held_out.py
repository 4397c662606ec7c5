"""Prompts that a region was located on: found where they can be known, and said where they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from ballast.errors import PromptError
from ballast.prompts import PromptSet, load_prompts
from ballast.regions import PromptSource, Region
from ballast.validate.held_out import check_held_out
from tests.regions.worlds import region
from tests.worlds import prompt_set

NEW = prompt_set("new", ["Something else entirely"])


def located_on(prompts: PromptSet, seed: int = 0) -> Region:
    made = region({"lm_head": [0]}, seed=seed)
    source = PromptSource(name=prompts.name, hash=prompts.hash, n=len(prompts))
    return Region(made.indices, made.metadata.model_copy(update={"prompts": source}))


@pytest.mark.parametrize("limit", [None, 20])
def test_a_named_set_or_a_draw_from_it(limit: int | None) -> None:
    tune, test = load_prompts("builtin/refusals", limit=limit, seed=3), load_prompts("builtin/harmful/test")
    found = located_on(tune, seed=3)
    assert check_held_out(found, [test, NEW], ()) == (True, ())
    with pytest.raises(PromptError, match="located on"):
        check_held_out(found, [NEW, load_prompts("builtin/harmful/tune")], ())


def test_a_draw_leaves_the_rest_free() -> None:
    whole = load_prompts("builtin/harmful/tune")
    drawn = whole.sample(20, 3)
    seen = {prompt.id for prompt in drawn}
    rest = PromptSet("rest", tuple(prompt for prompt in whole if prompt.id not in seen))
    assert check_held_out(located_on(drawn, seed=3), [rest], ()) == (True, ())


def test_sets_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").write_text('{"id": "a", "prompt": "How?"}\n')
    monkeypatch.setenv("BALLAST_DATA", str(tmp_path))
    mine = load_prompts("mine")
    assert check_held_out(located_on(mine), [NEW], ()) == (True, ())
    with pytest.raises(PromptError, match="located on 1 of the prompts"):
        check_held_out(located_on(mine), [prompt_set("other", ["how"])], ())
    (tmp_path / "mine.jsonl").write_text('{"id": "a", "prompt": "Changed since"}\n')
    assert check_held_out(located_on(mine), [NEW], ()) == (False, ("mine",))


@pytest.mark.parametrize("name", ["somewhere", "builtin/mine"])
def test_what_cannot_be_looked_up(name: str) -> None:
    mine = prompt_set(name, ["How?"])
    assert check_held_out(located_on(mine), [NEW], ()) == (False, (name,))
    assert check_held_out(located_on(mine), [NEW], [mine]) == (True, ())
    for given in ((), [mine]):  # the very set is known by its hash
        with pytest.raises(PromptError, match="located on 1 of the prompts"):
            check_held_out(located_on(mine), [mine], given)


def test_a_region_that_names_none() -> None:
    made = region({"lm_head": [0]})
    silent = Region(made.indices, made.metadata.model_copy(update={"prompts": None}))
    assert check_held_out(silent, [NEW], ()) == (False, ())
    assert check_held_out(silent, [NEW], [prompt_set("said", ["How?"])]) == (True, ())
