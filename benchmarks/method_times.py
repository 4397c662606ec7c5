"""How long each method takes from the command line on SmolLM2 with 64 prompts: seconds of the whole command.

Methods that compare with a second checkpoint get the hardened model of the main job (`runs/main_job/patch.safetensors`)
with SmolLM2 as its base, and a LoRA adapter of rank 8 with random factors. Writes `results/method_times.json` after
every method; one that fails ends the benchmark.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peft import LoraConfig, get_peft_model
from results import FOLDER, write_result

from ballast import METHODS, Patch, open_model
from ballast.runs import read_json

PATCH = Path("runs/main_job/patch.safetensors")
PROMPTS, LIMIT = "builtin/refusals", 64
FRACTION = "0.005"  # the main job moved less than 1 % of the weights, so `delta` has no more to select from


def second_checkpoint(folder: Path) -> Path:
    """The hardened model as a plain checkpoint."""
    lm = open_model("smollm2")
    Patch.load(PATCH).apply(lm.model)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def adapter(folder: Path) -> Path:
    """An adapter whose update is random but not zero."""
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(open_model("smollm2").model, config).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=sorted(METHODS), help="Results of the others are kept.")
    arguments = parser.parse_args()
    earlier = FOLDER / "method_times.json"
    seconds: dict[str, float] = read_json(earlier)["results"]["seconds"] if earlier.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        hardened, lora = second_checkpoint(place / "hardened"), adapter(place / "adapter")
        needs = {
            "delta": ["base=smollm2"],
            "nlsr": ["base=smollm2"],
            "activation_contrast": ["base=smollm2"],
            "safe_lora": ["base=smollm2", f"adapter={lora}"],
        }
        for method in arguments.methods:
            command = [sys.executable, "-m", "ballast", "locate", str(hardened if method in needs else "smollm2")]
            command += [
                "--method",
                method,
                "--prompts",
                PROMPTS,
                "--limit",
                str(LIMIT),
                "--out",
                str(place / method),
            ]
            if METHODS[method].granularity != "layer":  # layers are few; the method chooses
                command += ["--fraction", FRACTION]
            command += [word for setting in needs.get(method, []) for word in ("--setting", setting)]
            start = time.perf_counter()
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds[method] = round(time.perf_counter() - start, 1)
            print(method, seconds[method], run.stdout.strip() or run.stderr.strip()[-300:], flush=True)
            if run.returncode:
                sys.exit(f"{method} failed")
            write_result(
                "method_times",
                settings={"prompts": PROMPTS, "limit": LIMIT},
                results={"seconds": seconds, "limit_seconds": 300},
            )


if __name__ == "__main__":
    main()
