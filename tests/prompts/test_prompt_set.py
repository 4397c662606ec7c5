"""Sets of prompts: identity, samples, lists of sets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.errors import PromptError, UsageError
from ballast.prompts import Prompt, PromptSet, as_prompt_sets, load_prompts


class TestSets:
    def test_an_empty_set_is_refused(self) -> None:
        with pytest.raises(PromptError, match="is empty"):
            PromptSet("s", ())

    @given(limit=st.integers(1, 42), seed=st.integers(0, 5))
    def test_a_limit_draws_a_fixed_part_in_the_order_of_the_set(self, limit: int, seed: int) -> None:
        whole = load_prompts("builtin/ordinary/test")
        drawn = load_prompts("builtin/ordinary/test", limit=limit, seed=seed)
        positions = [whole.prompts.index(prompt) for prompt in drawn]
        assert len(drawn) == limit
        assert positions == sorted(set(positions))
        assert drawn == load_prompts("builtin/ordinary/test", limit=limit, seed=seed)

    def test_fewer_prompts_than_asked_are_an_error_that_names_both_numbers(self) -> None:
        assert len(load_prompts("builtin/ordinary/test", limit=42)) == 42
        with pytest.raises(UsageError, match=r"builtin/ordinary/test has 42 prompts, fewer than the 43 asked for"):
            load_prompts("builtin/ordinary/test", limit=43)

    def test_a_sample_is_at_most_the_whole_set(self) -> None:
        whole = load_prompts("builtin/ordinary/test")
        assert whole.sample(43) == whole

    def test_seeds_draw_differently_and_reach_every_prompt(self) -> None:
        draws = [load_prompts("builtin/ordinary/test", limit=10, seed=seed) for seed in range(30)]
        assert len({draw.hash for draw in draws}) == 30
        assert {prompt for draw in draws for prompt in draw} == set(load_prompts("builtin/ordinary/test"))

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_below_one_is_refused(self, limit: int) -> None:
        with pytest.raises(UsageError, match="at least 1"):
            load_prompts("builtin/ordinary", limit=limit)

    def test_the_hash_is_that_of_ids_prompts_and_responses(self) -> None:
        prompts = PromptSet("s", (Prompt(id="a", prompt="p", response="r"), Prompt(id="b", prompt="q")))
        assert prompts.hash == hashlib.sha256(b"a\0p\0r\0\nb\0q\0\0\n").hexdigest()

    def test_the_hash_sees_every_change_that_can_change_a_result(self) -> None:
        first, second = Prompt(id="a", prompt="p", response="r"), Prompt(id="b", prompt="q")
        changed = [
            (first, second),
            (second, first),
            (first,),
            (first.model_copy(update={"id": "c"}), second),
            (first.model_copy(update={"prompt": "P"}), second),
            (first.model_copy(update={"response": None}), second),
        ]
        assert len({PromptSet("s", rows).hash for rows in changed}) == len(changed)
        assert PromptSet("t", (first, second)).hash == PromptSet("s", (first, second)).hash

    def test_identity_and_file_name(self) -> None:
        prompts = PromptSet("hf:o/n@1234567:test", (Prompt(id="a", prompt="p"),))
        assert prompts.identity() == {"name": "hf:o/n@1234567:test", "hash": prompts.hash, "n": 1}
        assert prompts.slug == "hf-o-n-1234567-test"
        assert PromptSet("../up", prompts.prompts).slug == "up"


def test_one_set_may_stand_for_a_list(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "a", "prompt": "Why?"}\n')
    loaded = load_prompts(file)
    for given_set in (str(file), file, loaded, [str(file)], (loaded,)):
        assert as_prompt_sets(given_set) == [loaded]
    assert as_prompt_sets([file, "builtin/twins/test"]) == [loaded, load_prompts("builtin/twins/test")]
    assert as_prompt_sets(()) == []
