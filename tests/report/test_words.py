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
    write_json(folder / "comparison.json", {"sets": rows})
    return words.findings(gather(folder), "safety")


def row(difference: float, low: float, high: float) -> dict[str, Any]:
    return {
        "name": "set", "axis": "safety", "n": 50, "before": {"rate": 0.5, "low": 0.4, "high": 0.6},
        "after": {"rate": 0.5 + difference, "low": 0.1, "high": 0.9}, "difference": difference, "low": low,
        "high": high, "to_refused": 1, "to_complied": 2, "other": 0, "mcnemar_p": 0.5,
        "smallest_detectable_change": 0.12,
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
    assert sentences[1].startswith("On jailbreakbench_harmful, attack success fell from 97.0 % [91.5, 99.0] to ")
    assert sentences[2].startswith("On jailbreakbench_benign, over-refusal rose from ")
    assert sentences[3] == ("On alpaca_5000, log-likelihood worsened from −1.4812 to −1.4924 nats per token, by 0.8 %.")


def test_the_opening_of_parts(tmp_path: Path) -> None:
    measured = words.opening(gather(make_measurement(tmp_path / "measured")))
    assert measured[0].startswith("Ballast measured how SmolLM2-135M-Instruct (fixture) answers")
    assert measured[1].endswith("2 more sets of this kind are below.")
    assert words.opening(gather(make_region(tmp_path / "located"))) == [
        "Ballast located the weights of the model that matter most for safety."
    ]


@pytest.mark.parametrize(("relative", "difference"), [(0.00756, -0.0112), (-0.00756, -0.0112)])
def test_a_likelihood_that_sinks_is_worse_however_its_ratio_is_signed(
    tmp_path: Path, relative: float, difference: float
) -> None:
    make_run(tmp_path)
    comparison = read_json(tmp_path / "comparison.json")
    comparison["utility"][0] |= {"relative_change": relative, "difference": difference}
    write_json(tmp_path / "comparison.json", comparison)
    assert "worsened" in words.utility_findings(gather(tmp_path))[0].sentence
