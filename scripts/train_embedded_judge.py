"""Train the head of the embedded judge: `python scripts/train_embedded_judge.py` (about ten minutes on one core).

Everything it learns from is in this repository: the texts in `judge_data/`, the built-in refusals of the tune split,
and the embedded model's own answers to harmless prompts (`judge_data/own_answers.jsonl`, made by this script when the
file is missing). No row of a data set with human labels is read; those only measure the judge (`benchmarks/judges.py`).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from judge_data.answers import EVERYDAY
from judge_data.examples import Example, examples
from torch import Tensor

from ballast.judges.degenerate import degenerate
from ballast.judges.embedded import HEAD, LAYER, Reader
from ballast.models import open_model
from ballast.models.generation import answer_batch
from ballast.prompts import load_prompts
from ballast.prompts.chat import render
from ballast.runs import JsonLines, write_tensors

OWN_ANSWERS = Path(__file__).parent / "judge_data" / "own_answers.jsonl"
LAST_PAIR = 182  # of the built-in pairs when the shipped head was trained
L2 = 1e-2
SHORTEST_WORDS, LONGEST_WORDS = 7, 24  # of the cut copy of every example, as a small token limit leaves them


def own_answers() -> list[Example]:
    """What the embedded model says to harmless prompts: mostly answers, sometimes that it is not able to."""
    if not OWN_ANSWERS.exists():
        lm = open_model("smollm2", dtype="bfloat16")
        sets = [load_prompts(name) for name in ("builtin/twins/tune", "builtin/ordinary/tune")]
        prompts = EVERYDAY + [row.prompt for rows in sets for row in rows]
        for start in range(0, len(prompts), 16):
            batch = prompts[start : start + 16]
            produced = answer_batch(lm, [render(lm.tokenizer, prompt).ids for prompt in batch], 48)
            texts = [lm.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in produced]
            JsonLines(OWN_ANSWERS).append(
                [{"prompt": prompt, "answer": text} for prompt, text in zip(batch, texts, strict=True)]
            )
    rows = [(row["prompt"], row["answer"]) for row in JsonLines(OWN_ANSWERS).rows]
    return [
        Example(prompt, answer, "sorry" in answer and "n't have the" in answer, "own answers")
        for prompt, answer in rows
        if degenerate(answer) is None
    ]


def builtin_refusals() -> list[Example]:
    """The refusals of the split tune; those added after the shipped head was trained are left out."""
    rows = [row for row in load_prompts("builtin/refusals") if row.pair is not None and row.pair <= LAST_PAIR]
    return [Example(row.prompt, row.response, True, "built-in refusals") for row in rows if row.response]


def training_rows() -> list[Example]:
    """Every distinct example once whole and, if it is long enough, once cut in the middle of what it says."""
    whole = list(dict.fromkeys([*examples(), *own_answers(), *builtin_refusals()]))
    rng = random.Random(1)
    shortened = []
    for example in whole:
        words = example.answer.split(" ")
        length = rng.randint(SHORTEST_WORDS, LONGEST_WORDS)
        if len(words) > length:
            shortened.append(example._replace(answer=" ".join(words[:length])))
    return whole + shortened


def fit(states: Tensor, refused: Tensor, l2: float = L2) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised states, both classes with equal weight; fp64, deterministic.

    Args:
        states: (n, features).
        refused: (n,) bool.
        l2: Weight of the squared coefficients.

    Returns:
        Weight (features,) and bias () fp32 for states that are not standardised.
    """
    states, target = states.double(), refused.double()
    mean, deviation = states.mean(0), states.std(0) + 1e-6
    inputs = (states - mean) / deviation
    weights = torch.where(refused, 0.5 / target.sum(), 0.5 / (1 - target).sum())
    head = torch.zeros(inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ head[:-1] + head[-1]
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        total = (weights * each).sum() + l2 * head[:-1].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    weight = head.detach()[:-1] / deviation
    return weight.float(), (head.detach()[-1] - weight @ mean).float()


def main() -> None:
    """Train and write the head; print how it does on what it was trained on, by family."""
    rows = training_rows()
    states = Reader.open().states([row.request for row in rows], [row.answer for row in rows])
    refused = torch.tensor([row.refused for row in rows])
    weight, bias = fit(states, refused)
    metadata = {"model": "smollm2", "layer": str(LAYER), "examples": str(len(rows)), "l2": str(L2)}
    write_tensors(HEAD, {"weight": weight, "bias": bias}, metadata)
    right = ((states @ weight + bias) >= 0) == refused
    for family in sorted({row.family for row in rows}):
        chosen = torch.tensor([row.family == family for row in rows])
        sys.stdout.write(f"{family:28} {int(right[chosen].sum()):5} of {int(chosen.sum()):5}\n")
    sys.stdout.write(f"{HEAD}: {HEAD.stat().st_size} bytes\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
