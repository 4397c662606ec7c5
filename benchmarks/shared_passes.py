"""What several methods cost together beside a plain forward and backward, and beside one pass a layer.

The arms take turns in one process. `signed and activations` is ESI, |gradient|, Wanda and the feed-forward, output and
value neurons in one go; `with per-sample` has SNIP beside them, whose absolute values need the gradient of every row;
`per-sample plain` is the simple way to these: forward and backward row by row, gradients dropped. `layer by layer` is
the published scheme for SNIP: all rows once for each layer's weights, here over a few rows and compared with one pass
over the same few. Writes `results/shared_passes.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from results import write_result

from ballast import PromptSet, load_prompts, locate, locate_all, open_model
from ballast.locate import WeightScores
from ballast.locate.engine import eligible_parameters, only_trainable, weighted_likelihood
from ballast.locate.neurons import Neurons
from ballast.locate.references import refusal_rows
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel

ROWS, BATCH, FEW = 64, 8, 4
SIGNED = ("esi", "gradient", "wanda", Neurons(kinds=("feed_forward", "output", "value")))


def plain(lm: LanguageModel, rows: list[WeightedRow], batch: int) -> None:
    with only_trainable(lm.model, set(eligible_parameters(lm))):
        for first in range(0, len(rows), batch):
            weighted_likelihood(lm, rows[first : first + batch]).backward()
            lm.model.zero_grad(set_to_none=True)


def layer_by_layer(lm: LanguageModel, rows: list[WeightedRow]) -> dict[str, torch.Tensor]:
    """SNIP's sums with one pass over all rows for each layer."""
    sums: dict[str, torch.Tensor] = {}
    for parts in lm.parts.by_layer().values():
        parameters = {part.name: lm.model.get_parameter(part.name) for part in parts.values()}
        with only_trainable(lm.model, set(parameters)):
            for row in rows:
                weighted_likelihood(lm, [row]).backward()
                for name, parameter in parameters.items():
                    assert parameter.grad is not None
                    sums[name] = sums.get(name, 0) + parameter.grad.abs().float()
                    parameter.grad = None
    return sums


def apart(prompts: PromptSet, dtype: str) -> float:
    """How far the scores of the published scheme are from ours, as a share of the largest score of each tensor."""
    lm = open_model("smollm2", dtype=dtype)
    scores = locate(lm, prompts, "snip")
    assert isinstance(scores, WeightScores)
    sums = layer_by_layer(lm, refusal_rows(lm, prompts, ()))
    found = []
    for name, mine in scores.values.items():
        theirs = sums[name] * lm.model.get_parameter(name).detach().float().abs()
        found.append(float((mine - theirs).abs().max() / mine.max()))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lm = open_model("smollm2")
    prompts = load_prompts("builtin/refusals", limit=ROWS)
    few = prompts.sample(FEW)
    rows = sorted(refusal_rows(lm, prompts, ()), key=lambda row: len(row.rendered.ids), reverse=True)
    few_rows = refusal_rows(lm, few, ())
    arms: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(lm, rows, BATCH),
        "signed and activations": lambda: locate_all(lm, prompts, SIGNED, batch_size=BATCH),
        "per-sample plain": lambda: plain(lm, rows, 1),
        "with per-sample": lambda: locate_all(lm, prompts, (*SIGNED, "snip"), batch_size=BATCH),
        "one pass": lambda: locate(lm, few, "snip"),
        "layer by layer": lambda: layer_by_layer(lm, few_rows),
    }
    locate_all(lm, few, SIGNED)  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(arguments.repeats):
        for name, arm in list(arms.items())[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - start)
            print(turn, name, round(seconds[name][-1], 2), flush=True)

    def ratio(name: str, to: str) -> dict[str, object]:
        found = [one / other for one, other in zip(seconds[name], seconds[to], strict=True)]
        return {"median": statistics.median(found), "all": found}

    write_result(
        "shared_passes",
        settings={"rows": ROWS, "few_rows": FEW, "batch": BATCH, **vars(arguments)},
        results={
            "seconds": seconds,
            "signed_and_activations_to_plain": ratio("signed and activations", "plain"),
            "with_per_sample_to_plain": ratio("with per-sample", "plain"),
            "per_sample_plain_to_plain": ratio("per-sample plain", "plain"),
            "layer_by_layer_to_one_pass": ratio("layer by layer", "one pass"),
            "largest_difference_of_scores": {dtype: apart(few, dtype) for dtype in ("bfloat16", "float32")},
        },
    )


if __name__ == "__main__":
    main()
