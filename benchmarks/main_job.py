"""The main job on public test sets: what the demo does, measured on prompts that share nothing with its own.

Needs BALLAST_DATA with JailbreakBench, XSTest and Alpaca. Writes `runs/main_job/report.html` and
`results/main_job.json`; continues where it stopped.
"""

from __future__ import annotations

import json
from pathlib import Path

from results import write_result
from rich.console import Console

from ballast import demo, load_prompts
from ballast.progress import shown_on
from ballast.runs import JsonLines, read_json

OUT = Path("runs/main_job")
SAFETY = ("builtin/harmful/test", "jailbreakbench_harmful", "xstest_unsafe_contrast")
OVER_REFUSAL = ("builtin/twins/test", "jailbreakbench_benign", "xstest_safe", "builtin/ordinary/test")
ALPACA_ROWS = 200


def main() -> None:
    alpaca = OUT.parent / f"alpaca_{ALPACA_ROWS}.jsonl"
    if not alpaca.exists():
        rows = load_prompts("alpaca_5000", limit=ALPACA_ROWS)
        JsonLines(alpaca).append([row.model_dump(include={"id", "prompt", "response"}) for row in rows])
    with shown_on(Console(stderr=True)):
        demo(OUT, safety=SAFETY, overrefusal=OVER_REFUSAL, utility=(str(alpaca), "builtin/answers", "builtin/choices"))
    comparison = read_json(OUT / "comparison.json")
    run, harden = read_json(OUT / "run.json"), read_json(OUT / "harden" / "harden.json")
    write_result(
        "main_job",
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
