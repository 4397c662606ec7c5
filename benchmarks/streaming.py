"""What streaming costs and saves: Wanda on SmolLM2 with 64 prompts, in memory and streamed from the files.

Every arm is a process of its own that opens the model, scores and selects. `resident` is its highest resident memory
as the kernel keeps it; it counts pages of the weight files that are mapped, which the system can take back at any time.
`anonymous` is the highest memory of its own, looked at every 20 milliseconds. A streamed model is read once per batch,
hence the arm with one batch for all prompts. The arms take turns. Writes `results/streaming.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from results import write_result

from ballast import load_prompts, locate, open_model

PROMPTS, LIMIT, FRACTION = "builtin/refusals", 64, 0.01
ARMS = {
    "in memory, batches of 8": (False, 8),
    "streamed, batches of 8": (True, 8),
    "in memory, one batch": (False, LIMIT),
    "streamed, one batch": (True, LIMIT),
}


def work(arm: str) -> dict[str, float]:
    """Seconds of each step of one arm, in this process."""
    stream, batch_size = ARMS[arm]
    seconds = {}
    start = time.perf_counter()
    lm = open_model("smollm2", stream=stream, device="cpu")
    seconds["open"] = time.perf_counter() - start
    start = time.perf_counter()
    scores = locate(lm, load_prompts(PROMPTS, limit=LIMIT), "wanda", batch_size=batch_size)
    seconds["score"] = time.perf_counter() - start
    start = time.perf_counter()
    scores.select(FRACTION)
    seconds["select"] = time.perf_counter() - start
    return seconds


def status(process: int, field: str) -> int:
    """A field of /proc/PID/status in bytes; 0 when the process has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def peak_anew() -> None:
    """Let this process's highest resident memory, `VmHWM`, begin anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(arm: str) -> dict[str, object]:
    """Seconds and peaks of one arm in a process of its own."""
    command = [sys.executable, __file__, "--arm", arm]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        resident = anonymous = 0
        while process.poll() is None:
            resident = max(resident, status(process.pid, "VmHWM"))
            anonymous = max(anonymous, status(process.pid, "RssAnon"))
            time.sleep(0.02)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"seconds": json.loads(printed.splitlines()[-1]), "resident": resident, "anonymous": anonymous}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, help="Print the seconds of one arm and write nothing.")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(work(arguments.arm)))
        return
    found: dict[str, list[dict[str, object]]] = {arm: [] for arm in ARMS}
    for turn in range(arguments.repeats):
        for arm in list(ARMS)[:: 1 if turn % 2 == 0 else -1]:
            found[arm].append(measured(arm))
            print(arm, found[arm][-1], flush=True)
    write_result(
        "streaming",
        settings={"prompts": PROMPTS, "limit": LIMIT, "fraction": FRACTION, "repeats": arguments.repeats},
        results=found,
    )


if __name__ == "__main__":
    main()
