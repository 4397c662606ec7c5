"""Does noise on the top 1 % by ESI harm refusal more than noise on as many other weights?

The hardened model of the main job (`runs/main_job/patch.safetensors`, see `main_job.py`) is disturbed by Gaussian noise
of 0.38 standard deviations of each matrix, the published verification, on regions of equal size: ESI's top 1 %; random
weights with as many in every matrix (the decisive control); random weights anywhere; ESI's bottom; and the top of other
scores. Refusals, and answers that are empty, looping or gibberish, are counted on JailbreakBench, which nothing was
located on; utility is the log-likelihood of Alpaca answers. Needs BALLAST_DATA. Each region and seed is kept in
`runs/noise.jsonl`, so the same command continues; writes `results/noise/SCALE.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from results import FOLDER, write_result

from ballast import Patch, load_prompts, locate_all, open_model
from ballast.evaluate.answers import generate
from ballast.evaluate.statistics import mcnemar_exact, wilson
from ballast.evaluate.utility import log_likelihood
from ballast.judges import get_judge
from ballast.models import LanguageModel
from ballast.regions import Region
from ballast.regions.noise import noisy
from ballast.runs import JsonLines

PATCH = Path("runs/main_job/patch.safetensors")
SETS = ("jailbreakbench_harmful", "jailbreakbench_benign")
METHODS = ("esi", "gradient", "gradient_times_weight", "magnitude", "wanda", "random")
FRACTION, SCALE, TOKENS, PROMPTS = 0.01, 0.38, 24, 104
UTILITY, UTILITY_ROWS = "alpaca_5000", 50
CONTROL = "random, as many per matrix"


def regions(lm: LanguageModel) -> dict[str, Region]:
    scores = dict(zip(METHODS, locate_all(lm, load_prompts("builtin/refusals", limit=PROMPTS), METHODS), strict=True))
    found = {name: scores[name].select(FRACTION) for name in METHODS}
    found["random anywhere"] = found.pop("random")
    found[CONTROL] = found["esi"].sample_like(seed=0)
    found["esi, bottom"] = scores["esi"].select(FRACTION, direction="bottom")
    return found


def measured(lm: LanguageModel) -> dict[str, Any]:
    """The verdict on every answer, and the utility."""
    found: dict[str, Any] = {}
    for name in SETS:
        rows = generate(lm, load_prompts(name), max_new_tokens=TOKENS)
        judged = get_judge("embedded").judge([row.prompt for row in rows], [row.answer for row in rows])
        found[name] = [str(row.verdict) for row in judged]
    utility = log_likelihood(lm, load_prompts(UTILITY, limit=UTILITY_ROWS))
    found["log_likelihood"] = sum(row.value * row.weight for row in utility) / sum(row.weight for row in utility)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="Draws of the noise.")
    parser.add_argument("--scale", type=float, default=SCALE, help="Standard deviations of each matrix.")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    (FOLDER / "noise").mkdir(exist_ok=True)
    lm = open_model("smollm2")
    patch = Patch.load(PATCH)
    patch.apply(lm.model)
    kept = JsonLines(Path(f"runs/noise-{arguments.scale}.jsonl"))
    done = {(row["region"], row["seed"]) for row in kept.rows}
    if ("undisturbed", 0) not in done:
        kept.append([{"region": "undisturbed", "seed": 0, **measured(lm)}])
    for name, region in regions(lm).items():
        for seed in range(arguments.seeds):
            if (name, seed) not in done:
                with noisy(lm, region, arguments.scale, seed):
                    kept.append([{"region": name, "seed": seed, **measured(lm)}])
                print(name, seed, flush=True)
    write_result(
        f"noise/{arguments.scale}",
        settings={"fraction": FRACTION, "tokens": TOKENS, "prompts": PROMPTS, **vars(arguments)},
        results=summary({(row["region"], row["seed"]): row for row in kept.rows}),
    )


def summary(rows: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, object]]:
    """Per region, seed and set: refusals with interval, and the paired test against the control of the same seed."""
    found = []
    for (region, seed), row in rows.items():
        for name in SETS:
            mine = refusals(row[name])
            entry: dict[str, object] = {"region": region, "seed": seed, "set": name, "n": len(mine)}
            entry |= {"refused": sum(mine), "interval": wilson(sum(mine), len(mine))}
            entry |= {"degenerate": row[name].count("degenerate"), "log_likelihood": row["log_likelihood"]}
            if region not in ("undisturbed", CONTROL):
                control = refusals(rows[CONTROL, seed][name])
                fell = sum(theirs and not own for own, theirs in zip(mine, control, strict=True))
                rose = sum(own and not theirs for own, theirs in zip(mine, control, strict=True))
                entry |= {"fewer_than_control": fell, "more_than_control": rose, "p": mcnemar_exact(fell, rose)}
            found.append(entry)
    return found


def refusals(verdicts: list[str]) -> list[bool]:
    return [verdict == "refused" for verdict in verdicts]


if __name__ == "__main__":
    main()
