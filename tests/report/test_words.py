from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ballast.report import words
from ballast.report.read import gather
from ballast.runs import read_json, write_json
from tests.report.artefacts import make_measurement, make_region, make_run


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def compared(folder: Path, rows: list[dict[str, Any]]) -> list[words.Finding]:
    comparison = {"before": "before", "after": "after", "sets": rows, "utility": [], "flips": []}
    write_json(folder / "comparison.json", comparison)
    return words.findings(gather(folder), "safety")


def row(difference: float, low: float, high: float) -> dict[str, Any]:
    counts = {"refused": 0, "complied": 0, "degenerate": 0}
    return {
        "name": "set", "axis": "safety", "n": 50, "unscored": 0,
        "before": {"rate": 0.5, "low": 0.4, "high": 0.6} | counts,
        "after": {"rate": 0.5 + difference, "low": 0.1, "high": 0.9} | counts,
        "difference": difference, "low": low, "high": high, "to_refused": 1, "to_complied": 2, "other": 0, "fell": 0,
        "rose": 0, "mcnemar_p": 0.5, "smallest_detectable_change": 0.12,
    }  # fmt: skip


def test_a_change_is_named_only_when_its_interval_excludes_zero(tmp_path: Path) -> None:
    fell, rose, unclear = (
        plain(finding.sentence)
        for finding in compared(tmp_path, [row(-0.2, -0.3, -0.1), row(0.2, 0.1, 0.3), row(-0.1, -0.3, 0.1)])
    )
    assert fell == "attack success fell from 50.0 % [40.0, 60.0] to 30.0 % [10.0, 90.0] of 50."
    assert rose == "attack success rose from 50.0 % [40.0, 60.0] to 70.0 % [10.0, 90.0] of 50."
    assert unclear == (
        "attack success was 50.0 % [40.0, 60.0] and is 40.0 % [10.0, 90.0] of 50: no clear change; "
        "a change below about 12.0 points would go unseen."
    )


def test_more_degenerate_answers_are_named_beside_the_rate(tmp_path: Path) -> None:
    worse = row(-0.2, -0.3, -0.1)
    worse["after"] = {**worse["after"], "degenerate": 7}
    [finding] = compared(tmp_path, [worse])
    named = " (7 answers are now degenerate, 0 were before)."
    assert plain(finding.sentence).endswith(f"of 50{named}")
    assert plain(words.opening(gather(tmp_path))[1]).endswith(f"of 50{named}")
    worse["before"] = {**worse["before"], "degenerate": 7}
    assert "degenerate" not in compared(tmp_path, [worse])[0].sentence


def test_a_headline_counts_all_sets(tmp_path: Path) -> None:
    compared(tmp_path, [row(-0.2, -0.3, -0.1), row(0.2, 0.1, 0.3), row(-0.1, -0.3, 0.1)])
    headline = words.opening(gather(tmp_path))[1]
    assert headline.endswith("of 3 sets, it fell on 1 and it rose on 1 and there is no clear change on 1.")
    compared(tmp_path, [row(-0.2, -0.3, -0.1)] * 2)
    assert words.opening(gather(tmp_path))[1].endswith("; on all 2 sets it fell.")


def test_the_opening_of_a_whole_run(tmp_path: Path) -> None:
    sentences = [plain(text) for text in words.opening(gather(make_run(tmp_path)))]
    assert sentences[0] == (
        "Ballast hardened SmolLM2-135M-Instruct (fixture) against harmful requests by tuning only 1 % of its weights: "
        "1,061,683 of 106,168,320 eligible entries."
    )
    assert sentences[1].startswith("On jailbreakbench_harmful, attack success fell from 9")
    assert sentences[2].startswith("On jailbreakbench_benign, over-refusal ")
    assert sentences[3].startswith("On alpaca_5000, log-likelihood worsened from −1.")
    assert sentences[4].endswith("no clear change.")


@pytest.mark.parametrize(
    ("layers", "said"),
    [(None, "(scope: global)"), ([3, 4, 5], "(scope: global, in layers 3 to 5)"), ([1, 5], "in 2 of the layers)")],
)
def test_the_layers_selected_from_are_said(tmp_path: Path, layers: list[int] | None, said: str) -> None:
    path = make_region(tmp_path) / "region.json"
    write_json(path, read_json(path) | {"layers": layers})
    assert said in " ".join(words.method(gather(tmp_path)))


def test_the_opening_of_parts(tmp_path: Path) -> None:
    measured = words.opening(gather(make_measurement(tmp_path / "measured")))
    assert measured[0].startswith("Ballast measured how SmolLM2-135M-Instruct (fixture) answers")
    assert measured[1].endswith("2 more sets of this kind are below.")
    assert words.opening(gather(make_region(tmp_path / "located"))) == [
        "Ballast located the weights of the model that matter most for safety."
    ]


@pytest.mark.parametrize(
    ("difference", "low", "high", "words_used"),
    [
        (-0.0112, -0.013, -0.009, "worsened from −1.5000 to −1.5112 nats per token, by 0.7 %."),
        (0.0112, 0.009, 0.013, "improved from −1.5000 to −1.4888 nats per token, by 0.7 %."),
        (0.0112, -0.009, 0.013, "went from −1.5000 to −1.4888 nats per token: no clear change."),
    ],
)
def test_a_likelihood_that_sinks_is_worse(
    tmp_path: Path, difference: float, low: float, high: float, words_used: str
) -> None:
    make_run(tmp_path)
    comparison = read_json(tmp_path / "comparison.json")
    values = {"before": -1.5, "after": -1.5 + difference, "relative_change": difference / 1.5}
    comparison["utility"][0] |= {"difference": difference, "low": low, "high": high} | values
    write_json(tmp_path / "comparison.json", comparison)
    assert plain(words.utility_findings(gather(tmp_path))[0].sentence) == f"log-likelihood {words_used}"
