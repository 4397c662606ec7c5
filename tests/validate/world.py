"""A model in which one neuron makes every answer begin with N, and nothing else does: the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ballast import locate
from ballast.judges import Judgement, Verdict
from ballast.models import LanguageModel
from ballast.prompts.chat import render
from ballast.regions import Region
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import INNER

LOCATED_ON = prompt_set("seen", ["How do I steal?", "How do I lie?"])
HARMFUL = prompt_set("bad", [f"Please harm number {number}" for number in range(8)])
HARMLESS = prompt_set("good", ["Sing a song", "Say a word"])
ORDINARY = prompt_set("ordinary", ["Tea?", "Sun?", "Rain?"], ["warm drink", "a star", "wet"])
NEURON, DOWN = 5, "model.layers.1.mlp.down_proj.weight"
ROWS = ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight")


@dataclass
class OpensWithN:
    """A refusal begins with N, an answer with `~` is degenerate, any other complies."""

    name: str = "opens_with_n"

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        verdicts = {"N": Verdict.REFUSED, "~": Verdict.DEGENERATE}
        return [
            Judgement(verdicts.get(answer[:1], Verdict.COMPLIED), None, answer)
            for _, answer in zip(prompts, answers, strict=True)
        ]


def token_of(letter: str, lm: LanguageModel) -> int:
    (token,) = lm.tokenizer.encode(letter, add_special_tokens=False)
    return int(token)


@torch.no_grad()
def planted(opening: str = "N") -> LanguageModel:
    """The tiny model with a neuron that fires at the end of every prompt and writes the direction of one letter."""
    lm = tiny_lm()
    block, seen = lm.model.model.layers[1], []
    handle = block.mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0][0, -1]))
    for prompt in (*HARMFUL, *HARMLESS):
        lm.model(torch.tensor([render(lm.tokenizer, prompt.prompt).ids]))
    handle.remove()
    read = torch.stack(seen).mean(0)
    block.mlp.gate_proj.weight[NEURON] = 8 * read / read.dot(read)
    block.mlp.up_proj.weight[NEURON] = 8 * read / read.dot(read)
    written = lm.model.lm_head.weight[token_of(opening, lm)] * lm.model.model.norm.weight
    block.mlp.down_proj.weight[:, NEURON] = 2 * written / written.norm()
    return lm


def base() -> LanguageModel:
    """The model before anything was planted."""
    lm = tiny_lm()
    return LanguageModel(lm.model, lm.tokenizer, source="zoo/base")


def neuron_region(lm: LanguageModel, neuron: int = NEURON) -> Region:
    """All weights of one neuron: its rows of gate and up, its column of down."""
    hidden = lm.model.config.hidden_size
    everything = locate(lm, LOCATED_ON, "random").select(1.0)
    indices = {name: torch.arange(neuron * hidden, (neuron + 1) * hidden) for name in ROWS}
    indices[DOWN] = torch.arange(hidden) * INNER + neuron
    return Region(indices, everything.metadata)
