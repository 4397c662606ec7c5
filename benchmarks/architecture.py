"""Where scores and regions lie: share, density and enrichment per layer and role, for three architectures.

SmolLM2 (dense), Gemma-3-270M (dense, another family, if its packages are installed) and SmolLM2 upcycled to four
experts. The refusals of the built-in set, 64 of them; ESI, SNIP and Wanda, top 1 %. Each half of the prompts is located
on as well: the spread between halves says how much a share hangs on the prompts. Writes `results/architecture/*.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from typing import Any

import torch
from results import FOLDER, write_result

from ballast import LanguageModel, PromptSet, Region, load_prompts, locate_all, open_model
from ballast.locate import WeightScores
from ballast.models.upcycle import upcycled

METHODS = ("esi", "snip", "wanda")
PROMPTS, FRACTION, EXPERTS = 64, 0.01, 4


def opened(name: str) -> LanguageModel:
    return upcycled(open_model("smollm2"), EXPERTS) if name == "smollm2-experts" else open_model(name)


def by(region: Region, key: str, layers: int) -> dict[str, dict[str, float]]:
    """Share, density and enrichment (share over share of the weights) per role, third of the depth, or both."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for cell in region.cells():
        third = ("first", "middle", "last")[3 * cell["layer"] // layers]
        name = {"role": cell["role"], "third": third, "cell": f"{cell['role']}, {third} third"}[key]
        sums[name][0] += cell["selected"]
        sums[name][1] += cell["size"]
    total, eligible = len(region), region.metadata.eligible
    return {
        name: {"share": one / total, "density": one / size, "enrichment": (one / total) / (size / eligible)}
        for name, (one, size) in sorted(sums.items())
    }


def halves(prompts: PromptSet) -> list[PromptSet]:
    return [dataclasses.replace(prompts, prompts=prompts.prompts[start::2]) for start in (0, 1)]


def described(lm: LanguageModel, prompts: PromptSet) -> dict[str, Any]:
    layers = lm.model.config.get_text_config().num_hidden_layers
    found: dict[str, Any] = {}
    regions: dict[str, list[Region]] = defaultdict(list)
    for chosen in (prompts, *halves(prompts)):
        for scores in locate_all(lm, chosen, METHODS):
            assert isinstance(scores, WeightScores)
            region = scores.select(FRACTION)
            regions[scores.method].append(region)
            if chosen is prompts:
                mass = scores.cells()
                total = sum(cell["mass"] for cell in mass)
                found[scores.method] = {
                    "mass": [{**cell, "share": cell["mass"] / total} for cell in mass],
                    "region": region.cells(),
                }
    for method, (whole, *parts) in regions.items():
        found[method]["groups"] = {key: by(whole, key, layers) for key in ("role", "third", "cell")}
        found[method]["halves"] = [by(part, "cell", layers) for part in parts]
        found[method]["overlap_of_halves"] = parts[0].iou(parts[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2", "smollm2-experts", "gemma3-270m"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prompts = load_prompts("builtin/refusals", limit=PROMPTS)
    (FOLDER / "architecture").mkdir(exist_ok=True)
    for name in arguments.models:
        write_result(
            f"architecture/{name}",
            settings={"methods": METHODS, "prompts": PROMPTS, "fraction": FRACTION, "experts": EXPERTS},
            results=described(opened(name), prompts),
        )


if __name__ == "__main__":
    main()
