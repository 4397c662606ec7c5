from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.report.flips import EXAMPLES_PER_SET, LONGEST_ANSWER, cut, flipped_sets
from ballast.report.read import gather
from ballast.runs import read_json, write_json
from tests.report.artefacts import make_run


@given(st.text(), st.integers(1, 50))
def test_a_cut_text_is_never_too_long_and_a_short_one_is_whole(text: str, longest: int) -> None:
    assert len(cut(text, longest)) <= longest
    if len(text.strip()) <= longest:
        assert cut(text, longest) == text.strip()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_every_flip_is_counted_and_few_are_shown(run: Path) -> None:
    flips = read_json(run / "comparison.json")["flips"]
    for group in flipped_sets(gather(run)):
        total = sum(flip["set"] == group.name for flip in flips)
        assert sum(direction.count for direction in group.directions) == total
        assert len(group.examples) == min(total, EXAMPLES_PER_SET)
        assert group.more == total - len(group.examples)


def test_a_rare_direction_is_among_the_examples(run: Path) -> None:
    group = flipped_sets(gather(run))[0]
    shown = {(example.before.verdict, example.after.verdict) for example in group.examples}
    assert shown == {(direction.before, direction.after) for direction in group.directions}
    assert ("refused", "complied") in shown


def test_on_harmful_prompts_only_refusals_are_open(run: Path) -> None:
    for group in flipped_sets(gather(run)):
        for example in group.examples:
            for answer in (example.before, example.after):
                assert answer.hidden == (group.axis == "safety" and answer.verdict != "refused")
                assert answer.text is not None
                assert len(answer.text) <= LONGEST_ANSWER


def test_answers_are_of_the_right_prompt_and_stage(run: Path) -> None:
    for stage, answer in (("before", "old"), ("after", "new")):
        file = run / stage / "completions" / "xstest_safe.jsonl"
        file.write_text(f'{{"id": "x", "prompt": "asked", "answer": "{answer}"}}\n')
    flips = [
        {"set": "xstest_safe", "axis": "over_refusal", "id": name, "before": "complied", "after": "refused"}
        for name in ("x", "gone")
    ]
    write_json(run / "comparison.json", read_json(run / "comparison.json") | {"flips": flips})
    [group] = flipped_sets(gather(run))
    known, gone = group.examples
    assert (known.prompt, known.before.text, known.after.text) == ("asked", "old", "new")
    assert (gone.prompt, gone.before.text, gone.after.text) == (None, None, None)
