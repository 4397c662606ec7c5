"""The main job on public test sets: what the demo does, measured on prompts that share nothing with its own.

Tunes on the built-in prompts and public ones (`training_sets.py`), or with `--built-in` on the built-in prompts only.
Needs BALLAST_DATA with the named sets. Writes `runs/main_job/report.html` and `results/main_job.json`, with
`--built-in` `runs/main_job_builtin` and `results/main_job_builtin.json`; continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from results import write_result
from rich.console import Console
from training_sets import builtin_sets, training_sets

from ballast import demo, load_prompts
from ballast.progress import shown_on
from ballast.runs import JsonLines, read_json

RUNS = Path("runs")
SAFETY = ("builtin/harmful/test", "jailbreakbench_harmful", "xstest_unsafe_contrast")
OVER_REFUSAL = ("builtin/twins/test", "jailbreakbench_benign", "xstest_safe", "builtin/ordinary/test")
ALPACA_ROWS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--built-in", action="store_true", help="Tune on the built-in prompts only.")
    name = "main_job_builtin" if parser.parse_args().built_in else "main_job"
    out = RUNS / name
    alpaca = RUNS / f"alpaca_{ALPACA_ROWS}.jsonl"
    if not alpaca.exists():
        rows = load_prompts("alpaca_5000", limit=ALPACA_ROWS)
        JsonLines(alpaca).append([row.model_dump(include={"id", "prompt", "response"}) for row in rows])
    with shown_on(Console(stderr=True)):
        utility = (str(alpaca), "builtin/answers", "builtin/choices")
        measured = [load_prompts(spec) for spec in (*SAFETY, *OVER_REFUSAL, *utility)]
        tuned_on = builtin_sets() if name == "main_job_builtin" else training_sets(measured)
        demo(
            out,
            refusals=tuned_on.refusals,
            harmless=tuned_on.harmless,
            safety=SAFETY,
            overrefusal=OVER_REFUSAL,
            utility=utility,
        )
    comparison = read_json(out / "comparison.json")
    run, harden = read_json(out / "run.json"), read_json(out / "harden" / "harden.json")
    write_result(
        name,
        settings=run["settings"],
        results={
            "seconds": {name: step["seconds"] for name, step in run["steps"].items()},
            "sets": comparison["sets"],
            "utility": comparison["utility"],
            "harden": {key: value for key, value in harden.items() if key != "settings"},
        },
    )
    print(json.dumps(comparison["sets"], indent=1))


if __name__ == "__main__":
    main()
