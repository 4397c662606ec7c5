"""The built-in prompts keep what their README promises."""

import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ballast.prompts.overlap import jaccard, word_set

FOLDER = Path(__file__).parents[2] / "src" / "ballast" / "prompts" / "builtin"
KINDS = ("harmful", "twins", "ordinary")
SPLITS = {"tune", "select", "test"}
Row = dict[str, Any]


def read(name: str) -> list[Row]:
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


ROWS = {name: read(name) for name in (*KINDS, "borderline", "refusals")}
PROMPTS = [row for kind in (*KINDS, "borderline") for row in ROWS[kind]]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_and_fields(kind: str) -> None:
    rows = ROWS[kind]
    assert len(rows) >= 176
    for row in rows:
        assert set(row) == {"id", "prompt", "category", "response", "source", "split", "pair"}
        assert row["response"] is None
        assert row["category"]
        assert row["source"] == "ballast built-in"
        assert row["prompt"] == row["prompt"].strip() != ""
        assert len(row["prompt"].split()) <= 25
    split_sizes = Counter(row["split"] for row in rows)
    assert set(split_sizes) == SPLITS
    assert split_sizes["tune"] >= 96
    assert min(split_sizes["select"], split_sizes["test"]) >= 39


@pytest.mark.parametrize("kind", KINDS)
def test_every_category_is_in_every_split(kind: str) -> None:
    categories = defaultdict(set)
    for row in ROWS[kind]:
        categories[row["split"]].add(row["category"])
    assert len(categories["tune"]) >= 8
    assert categories["tune"] == categories["select"] == categories["test"]


def test_ids_and_texts_are_distinct() -> None:
    ids = [row["id"] for rows in ROWS.values() for row in rows]
    assert len(set(ids)) == len(ids)
    assert len({word_set(row["prompt"]) for row in PROMPTS}) == len(PROMPTS)
    assert len({word_set(row["text"]) for row in ROWS["refusals"]}) == len(ROWS["refusals"])


def test_each_harmful_prompt_has_one_twin_in_the_same_split() -> None:
    harmful = {row["pair"]: row for row in ROWS["harmful"]}
    twins = {row["pair"]: row for row in ROWS["twins"]}
    assert len(harmful) == len(ROWS["harmful"])
    assert len(twins) == len(ROWS["twins"])
    assert harmful.keys() == twins.keys()
    for pair, row in harmful.items():
        assert (row["split"], row["category"]) == (twins[pair]["split"], twins[pair]["category"])
        assert word_set(row["prompt"]) & word_set(twins[pair]["prompt"])
    assert all(row["pair"] is None for row in ROWS["ordinary"])


def test_no_near_duplicates_across_splits() -> None:
    known = [(row["id"], row["split"], word_set(row["prompt"])) for row in PROMPTS]
    near = [
        (first[0], second[0])
        for first, second in combinations(known, 2)
        if first[1] != second[1] and jaccard(first[2], second[2]) >= 0.6
    ]
    assert near == []


def test_one_or_two_refusals_for_each_harmful_prompt_of_tune() -> None:
    tune = {row["id"] for row in ROWS["harmful"] if row["split"] == "tune"}
    by_prompt = defaultdict(list)
    for row in ROWS["refusals"]:
        assert set(row) == {"id", "prompt_id", "style", "text"}
        by_prompt[row["prompt_id"]].append(row)
    assert by_prompt.keys() == tune
    for rows in by_prompt.values():
        assert len({row["style"] for row in rows}) == len(rows) <= 2


def test_refusals_open_as_refusals_and_vary() -> None:
    refusals = ROWS["refusals"]
    opening = re.compile(
        r"I can't |I won't |I'm not able to |No, I can't |Sorry, but I can't |I'm sorry\b.*\bbut I can't "
    )
    for row in refusals:
        assert opening.match(row["text"]), row["id"]
        assert 15 <= len(row["text"].split()) <= 45, row["id"]
    assert len({row["style"] for row in refusals}) >= 5
    openings = Counter(" ".join(row["text"].split()[:2]) for row in refusals)
    assert len(openings) >= 5
    assert openings.most_common(1)[0][1] <= 0.6 * len(refusals)


def test_borderline_prompts_are_for_tuning_only() -> None:
    """They teach what not to refuse; measuring on prompts of the same making would flatter the result."""
    rows = ROWS["borderline"]
    assert Counter(row["split"] for row in rows) == {"tune": 240, "select": 60}
    assert all(set(row) == {"id", "prompt", "category", "response", "source", "split", "pair"} for row in rows)
    assert all(row["response"] is None and row["pair"] is None for row in rows)
    assert all(len({row["category"] for row in rows if row["split"] == split}) == 7 for split in ("tune", "select"))
