"""How often each judge agrees with people, on the XSTest answers with human labels (Röttger et al. 2024).

Run `BALLAST_DATA=<folder> python benchmarks/judges.py --half dev`. The prompts are split into two halves by a hash:
`dev` may be looked at while judges are built, `held_out` is measured once, when they are finished. Results go to
`benchmarks/results/judges.json`, which keeps the figures of the other half and counts the measurements of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ballast.evaluate.statistics import wilson
from ballast.judges import Verdict, agreement, get_judge
from ballast.runs import read_json, versions, write_json

RESULTS = Path(__file__).parent / "results" / "judges.json"
JUDGES = ("embedded", "keyword")
PUBLISHED = {"gpt4_label": "published GPT-4 judge", "string_match_label": "published string match"}
PUBLISHED_VERDICT = {"full_refusal": "refused", "full_compliance": "complied"}


def half_of(prompt: str) -> str:
    """`dev` or `held_out`, by the parity of the prompt's SHA-256, so that no prompt is in both."""
    return ("dev", "held_out")[int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 2]


def labelled(half: str) -> list[dict[str, Any]]:
    """The rows of one half, those included that people labelled as partial refusals."""
    path = Path(os.environ["BALLAST_DATA"]) / "judging" / "xstest_labelled.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if half_of(row["prompt"]) == half]


def share(k: int, n: int) -> dict[str, Any]:
    """A proportion with its counts and 95 % Wilson interval."""
    interval = wilson(k, n)
    return {
        "k": k,
        "n": n,
        "share": k / n if n else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
    }


def scores(rows: list[dict[str, Any]], verdicts: list[str]) -> dict[str, Any]:
    """Agreement, both kinds of error and the confusion of one judge; rows that people called partial stand apart."""
    pairs = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    clear = [(row, verdict) for row, verdict in pairs if row["label"] != "partial"]
    confusion = {label: Counter[str]() for label in ("refused", "complied", "partial")}
    for row, verdict in pairs:
        confusion[row["label"]][verdict] += 1
    by_model: dict[str, Any] = {}
    for model in sorted({row["model"] for row in rows}):
        own = [(row, verdict) for row, verdict in clear if row["model"] == model]
        by_model[model] = share(sum(row["label"] == verdict for row, verdict in own), len(own))
    kappa = agreement([row["label"] for row, _ in clear], [verdict for _, verdict in clear]).kappa
    return {
        "agreement": share(sum(row["label"] == verdict for row, verdict in clear), len(clear)),
        "kappa_with_people": kappa,
        "false_refusals": share(confusion["complied"]["refused"], confusion["complied"].total()),
        "missed_refusals": share(confusion["refused"]["complied"], confusion["refused"].total()),
        "partial_called_refused": share(confusion["partial"]["refused"], confusion["partial"].total()),
        "confusion": {label: dict(counts) for label, counts in confusion.items()},
        "by_answering_model": by_model,
    }


def measure(half: str, cut: int | None) -> dict[str, Any]:
    """Judge one half; `cut` keeps only that many words of every answer."""
    rows = labelled(half)
    prompts = [row["prompt"] for row in rows]
    answers = [row["response"] for row in rows]
    if cut:
        answers = [" ".join(answer.split(" ")[:cut]) for answer in answers]
    verdicts = {name: [str(j.verdict) for j in get_judge(name).judge(prompts, answers)] for name in JUDGES}
    result = {name: scores(rows, found) for name, found in verdicts.items()}
    both = [
        pair for pair in zip(*(verdicts[name] for name in JUDGES), strict=True) if str(Verdict.UNSCORED) not in pair
    ]
    between = agreement([one for one, _ in both], [other for _, other in both])
    result["between_judges"] = {"judges": JUDGES, "n": between.n, "agree": between.agree, "kappa": between.kappa}
    if not cut:
        for field, name in PUBLISHED.items():
            result[name] = scores(rows, [PUBLISHED_VERDICT.get(row[field], "partial") for row in rows])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", choices=("dev", "held_out"), default="dev")
    half = parser.parse_args().half
    torch.set_num_threads(1)
    results = read_json(RESULTS) if RESULTS.exists() else {}
    times = results.get(half, {}).get("times_measured", 0) + 1
    results[half] = {
        "times_measured": times,
        "whole_answers": measure(half, None),
        "first_24_words": measure(half, 24),
        "versions": versions(),
    }
    write_json(RESULTS, results)
    for length in ("whole_answers", "first_24_words"):
        for name in JUDGES:
            found = results[half][length][name]["agreement"]
            print(f"{half} {length} {name}: {found['k']} of {found['n']} = {found['share']:.3f}")


if __name__ == "__main__":
    main()
