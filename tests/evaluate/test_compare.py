"""Paired comparison of two measurement folders written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ballast.errors import RunError
from ballast.evaluate.compare import compare
from ballast.evaluate.comparison import Comparison
from ballast.evaluate.statistics import mcnemar_exact, paired_difference_interval, smallest_detectable_change, wilson
from ballast.evaluate.summary import ModelIdentity, SafetyResult, Summary, UtilityResult
from ballast.judges.base import Verdict
from ballast.prompts.prompt_set import Prompt, PromptSet
from ballast.runs import JsonLines

LETTERS = {"c": Verdict.COMPLIED, "r": Verdict.REFUSED, "d": Verdict.DEGENERATE, "u": Verdict.UNSCORED}
MODEL = ModelIdentity.model_validate(
    {"source": "tiny", "name": "tiny", "class": "X", "dtype": "float32", "parameters": 1}
)


def prompt_set(n: int, word: str = "request", name: str = "some/set") -> PromptSet:
    return PromptSet(name, tuple(Prompt(id=f"p{index}", prompt=f"{word} {index}") for index in range(n)))


def write(
    folder: Path,
    harmful: str = "",
    benign: str = "",
    *,
    word: str = "request",
    judge: str = "keyword",
    max_new_tokens: int = 48,
    utility: dict[str, tuple[str, list[float], list[float]]] | None = None,
) -> Summary:
    """A measurement whose verdicts are given as letters, one per prompt."""
    sets = []
    for name, axis, letters in (("some/harmful", "safety", harmful), ("benign", "over_refusal", benign)):
        if letters:
            prompts = prompt_set(len(letters), word, name)
            verdicts = [LETTERS[letter] for letter in letters]
            sets.append(SafetyResult.from_verdicts(prompts, axis, judge, verdicts))
            rows = [
                {"id": prompt.id, "verdict": verdict.value, "score": None, "raw": ""}
                for prompt, verdict in zip(prompts, verdicts, strict=True)
            ]
            JsonLines(folder / "verdicts" / judge / f"{prompts.slug}.jsonl").append(rows)
    results = []
    for name, (kind, values, weights) in (utility or {}).items():
        results.append(
            UtilityResult.model_validate(
                {"name": name, "slug": name, "hash": "h", "kind": kind, "value": 0, "n": len(values), "low": None}
                | {"high": None, "unit": "nats per token"}
            )
        )
        pairs = enumerate(zip(values, weights, strict=True))
        JsonLines(folder / "utility" / f"{name}.jsonl").append(
            [{"id": str(index), "value": value, "weight": weight} for index, (value, weight) in pairs]
        )
    summary = Summary(model=MODEL, judge=judge, max_new_tokens=max_new_tokens, sets=tuple(sets), utility=tuple(results))
    summary.save(folder)
    return summary


def test_counts_rates_and_statistics(tmp_path: Path) -> None:
    """p0..p9: five c -> r, one r -> c, one c -> d, one c -> c, one pair unscored on each side."""
    write(tmp_path / "before", "cccccrccuc")
    write(tmp_path / "after", "rrrrrcdcru")
    found = compare(tmp_path / "before", tmp_path / "after", out=tmp_path)
    (change,) = found.sets
    assert (change.n, change.unscored, change.fell, change.rose) == (8, 2, 6, 1)
    assert (change.to_refused, change.to_complied, change.other) == (5, 1, 1)
    assert change.before.rate == 7 / 8
    assert change.after.rate == 2 / 8
    assert (change.before.low, change.before.high) == wilson(7, 8)
    assert (change.after.refused, change.after.complied, change.after.degenerate) == (5, 2, 1)
    assert change.difference == pytest.approx(-5 / 8)
    assert (change.low, change.high) == paired_difference_interval(6, 1, 8)
    assert change.mcnemar_p == mcnemar_exact(6, 1)
    assert change.smallest_detectable_change == smallest_detectable_change(8, 7 / 8)
    assert [flip.id for flip in found.flips] == [f"p{index}" for index in range(7)]
    assert found.flips[6].after == Verdict.DEGENERATE
    assert (found.before, found.after) == ("before", "after")
    assert Comparison.load(tmp_path) == found


def test_over_refusal_counts_refusals(tmp_path: Path) -> None:
    before, after = write(tmp_path / "a", benign="ccccr"), write(tmp_path / "b", benign="crdcr")
    (change,) = compare(before, after).sets
    assert change.before.rate == 1 / 5
    assert change.after.rate == 2 / 5
    assert (change.fell, change.rose, change.to_refused, change.other) == (0, 1, 1, 1)
    assert change.difference == pytest.approx(0.2)


def test_pairs_by_id_not_by_order(tmp_path: Path) -> None:
    write(tmp_path / "a", "crcr")
    write(tmp_path / "b", "crcr")
    path = tmp_path / "b" / "verdicts" / "keyword" / "some-harmful.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.flips == ()
    assert found.sets[0].difference == 0
    assert found.sets[0].mcnemar_p == 1


def test_nothing_scored_gives_none(tmp_path: Path) -> None:
    write(tmp_path / "a", "uu")
    write(tmp_path / "b", "cc")
    (change,) = compare(tmp_path / "a", tmp_path / "b", out=tmp_path).sets
    assert (change.n, change.unscored) == (0, 2)
    assert change.difference is None
    assert change.mcnemar_p is None
    assert change.before.rate is None
    assert "NaN" not in (tmp_path / "comparison.json").read_text()


def test_log_likelihood_is_weighted_and_paired(tmp_path: Path) -> None:
    """Rows of 1 and 3 tokens: the mean goes from (-2 - 3 * 1) / 4 = -1.25 to (-2 - 3 * 1.1) / 4 = -1.325."""
    write(tmp_path / "a", utility={"text": ("log_likelihood", [-2.0, -1.0], [1.0, 3.0])})
    write(tmp_path / "b", utility={"text": ("log_likelihood", [-2.0, -1.1], [1.0, 3.0])})
    (change,) = compare(tmp_path / "a", tmp_path / "b").utility
    assert change.before == pytest.approx(-1.25)
    assert change.after == pytest.approx(-1.325)
    assert change.difference == pytest.approx(-0.075)
    assert change.relative_change == pytest.approx(-0.06)
    assert change.low == pytest.approx(-0.1)
    assert change.high == pytest.approx(0.0)


def test_pairing_narrows_the_interval(tmp_path: Path) -> None:
    """Every row loses 0.01: certain, although rows differ by far more from each other."""
    values = [-float(index % 7) for index in range(40)]
    write(tmp_path / "a", utility={"text": ("log_likelihood", values, [1.0] * 40)})
    write(tmp_path / "b", utility={"text": ("log_likelihood", [value - 0.01 for value in values], [1.0] * 40)})
    (change,) = compare(tmp_path / "a", tmp_path / "b").utility
    assert (change.low, change.high) == pytest.approx((-0.01, -0.01))


def test_multiple_choice_uses_the_score_interval(tmp_path: Path) -> None:
    """A bootstrap would claim a certain zero when no answer changed."""
    write(tmp_path / "a", utility={"quiz": ("multiple_choice", [1.0, 0.0, 1.0, 0.0], [1.0] * 4)})
    write(tmp_path / "b", utility={"quiz": ("multiple_choice", [1.0, 0.0, 1.0, 0.0], [1.0] * 4)})
    (change,) = compare(tmp_path / "a", tmp_path / "b").utility
    assert (change.low, change.high) == paired_difference_interval(0, 0, 4)


UTILITY = {"text": ("log_likelihood", [-1.0], [1.0])}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"harmful": "cc", "word": "other"}, "prompts of some/harmful differ"),
        ({"harmful": "cc", "judge": "embedded"}, "judge keyword and .* embedded"),
        ({"harmful": "cc", "max_new_tokens": 64}, "max_new_tokens 48 and .* 64"),
        ({"harmful": "cc", "benign": "cc"}, "measured benign .over_refusal, keyword.; measure both"),
        ({"harmful": "cc", "utility": UTILITY}, "measured text .log_likelihood"),
    ],
)
def test_unlike_measurements_are_refused(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    write(tmp_path / "a", "cc")
    write(tmp_path / "b", **second)
    with pytest.raises(RunError, match=message):
        compare(tmp_path / "a", tmp_path / "b", out=tmp_path)
    assert not (tmp_path / "comparison.json").exists()


def test_other_tokenizer_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", utility={"text": ("log_likelihood", [-1.0], [4.0])})
    write(tmp_path / "b", utility={"text": ("log_likelihood", [-1.0], [5.0])})
    with pytest.raises(RunError, match="share a tokenizer"):
        compare(tmp_path / "a", tmp_path / "b")


class TestDamage:
    def test_missing_measurement(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="does not exist"):
            compare(tmp_path / "a", tmp_path / "b")

    def test_unsaved_summary(self) -> None:
        summary = Summary(model=MODEL, judge="keyword", max_new_tokens=1)
        with pytest.raises(RunError, match="not saved"):
            compare(summary, summary)

    def test_unfinished_verdicts(self, tmp_path: Path) -> None:
        write(tmp_path / "a", "ccc")
        path = tmp_path / "a" / "verdicts" / "keyword" / "some-harmful.jsonl"
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(RunError, match="2 of 3 rows"):
            compare(tmp_path / "a", tmp_path / "a")

    def test_unknown_verdict(self, tmp_path: Path) -> None:
        write(tmp_path / "a", "ccc")
        path = tmp_path / "a" / "verdicts" / "keyword" / "some-harmful.jsonl"
        path.write_text(path.read_text().replace("complied", "maybe", 1))
        with pytest.raises(RunError, match=r"line 1 is damaged \(verdict"):
            compare(tmp_path / "a", tmp_path / "a")

    def test_other_ids(self, tmp_path: Path) -> None:
        write(tmp_path / "a", "cc")
        write(tmp_path / "b", "cc")
        path = tmp_path / "b" / "verdicts" / "keyword" / "some-harmful.jsonl"
        path.write_text(path.read_text().replace("p1", "q1"))
        with pytest.raises(RunError, match="'p1' of some/harmful is in one measurement only"):
            compare(tmp_path / "a", tmp_path / "b")

    def test_counts_that_do_not_add_up(self, tmp_path: Path) -> None:
        write(tmp_path / "a", "ccc")
        path = tmp_path / "a" / "summary.json"
        path.write_text(path.read_text().replace('"refused": 0', '"refused": 1'))
        with pytest.raises(RunError, match="add up"):
            Summary.load(tmp_path / "a")


def test_degenerate_is_scored_and_unscored_is_not() -> None:
    verdicts = [LETTERS[letter] for letter in "ccrdu"]
    result = SafetyResult.from_verdicts(prompt_set(5), "safety", "keyword", verdicts)
    assert (result.n, result.scored, result.degenerate, result.unscored) == (5, 4, 1, 1)
    assert result.rate == 2 / 4
    assert (result.low, result.high) == wilson(2, 4)


def test_summary_round_trip(tmp_path: Path) -> None:
    summary = write(tmp_path / "a", "crd", "uc")
    loaded = Summary.load(tmp_path / "a")
    assert loaded.sets == summary.sets
    assert loaded == summary
    assert loaded.folder == tmp_path / "a"
