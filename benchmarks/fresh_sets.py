"""The patch of the main job on prompt sets that nothing was tuned on, chosen by or looked at before.

Needs `runs/main_job/patch.safetensors` (`main_job.py`), or `runs/main_job_builtin` with `--built-in`, and BALLAST_DATA.
Prompts that share half of their words with one that was tuned on or chosen by are left out. Writes
`results/fresh_sets.json` or `results/fresh_sets_builtin.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import write_result
from training_sets import builtin_sets, training_sets

from ballast import Patch, PromptSet, compare, load_prompts, measure, open_model
from ballast.prompts.overlap import without_near_duplicates
from ballast.runs import read_json

RUNS = Path("runs")
SAFETY = {"strongreject": None, "tdc2023": None, "forbidden_questions": 150, "stl_physical_safety_unsafe": None}
OVER_REFUSAL = {"stl_physical_safety_safe": None, "alpaca_eval": 150}
CHOSEN_BY = ("builtin/harmful/select", "builtin/twins/select", "malicious_instruct", "harmbench")
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--built-in", action="store_true", help="Of the job tuned on the built-in prompts only.")
    suffix = "_builtin" if parser.parse_args().built_in else ""
    main_job, out = RUNS / f"main_job{suffix}", RUNS / f"fresh_sets{suffix}"
    run = read_json(main_job / "run.json")
    measured = [load_prompts(name) for name in run["prompt_sets"] if name.startswith(("jailbreakbench", "xstest"))]
    rows = builtin_sets() if suffix else training_sets(measured)
    known = [*rows.refusals, *rows.harmless, *(load_prompts(name) for name in CHOSEN_BY)]

    def fresh(sets: dict[str, int | None]) -> list[PromptSet]:
        return [without_near_duplicates(load_prompts(name, limit=n, seed=SEED), known) for name, n in sets.items()]

    safety, harmless = fresh(SAFETY), fresh(OVER_REFUSAL)
    lm = open_model("smollm2")
    measure(lm, safety=safety, overrefusal=harmless, out=out / "before")
    Patch.load(main_job / "patch.safetensors").apply(lm.model)
    measure(lm, safety=safety, overrefusal=harmless, out=out / "after")
    compare(out / "before", out / "after", out=out)
    comparison = read_json(out / "comparison.json")
    write_result(
        f"fresh_sets{suffix}",
        settings={"safety": SAFETY, "over_refusal": OVER_REFUSAL, "chosen_by": CHOSEN_BY, "seed": SEED},
        results={"patch": read_json(main_job / "patch.json"), "sets": comparison["sets"]},
    )


if __name__ == "__main__":
    main()
