"""What every weight matrix reads at the response tokens, seen without the machinery under test and kept as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ballast.locate.checkpoints.directions import Matrix
from ballast.locate.references import refusal_rows
from ballast.models import LanguageModel
from ballast.prompts import PromptSet
from ballast.prompts.refusals import REFUSALS


class EagerReads(TorchFunctionMode):
    """Notes what matrices of a stacked parameter are multiplied with, by where they lie in memory."""

    def __init__(self, stacked: Mapping[str, torch.Tensor]) -> None:
        self.places = {
            value[expert].data_ptr(): (name, expert) for name, value in stacked.items() for expert in range(len(value))
        }
        self.read: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.linear, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul):
            place = self.places.get(args[1].data_ptr())
            if place:
                self.read[place].append(args[0].detach())
        return func(*args, **(kwargs or {}))


def stored_reads(lm: LanguageModel, prompts: PromptSet) -> dict[Matrix, torch.Tensor]:
    """(tokens, in) of every eligible matrix that a response token reached: every row alone, without padding."""
    stacked = {
        part.name: lm.model.get_parameter(part.name).detach()
        for part in lm.parts.eligible()
        if part.expert_dim is not None
    }
    if stacked:
        lm.model.set_experts_implementation("eager")
    found: dict[Matrix, list[torch.Tensor]] = defaultdict(list)
    for row in refusal_rows(lm, prompts, REFUSALS[:1]):
        response = slice(row.rendered.prompt_length, len(row.rendered.ids))
        hooks: list[Any] = []
        routed: dict[str, torch.Tensor] = {}

        def keep(name: str, values: torch.Tensor, response: slice = response) -> None:
            found[Matrix(name, None)].append(values.reshape(-1, values.shape[-1])[response])

        for part in lm.parts.eligible():
            module = lm.model.get_submodule(part.name.rpartition(".")[0])
            if part.expert_dim is None:
                hooks.append(module.register_forward_pre_hook(lambda _, seen, name=part.name: keep(name, seen[0])))
            else:
                hooks.append(module.register_forward_pre_hook(_note(routed, part.name)))
        with torch.no_grad(), EagerReads(stacked) as eager:
            lm.model(input_ids=torch.tensor([row.rendered.ids]))
        for hook in hooks:
            hook.remove()
        for (name, expert), rows in eager.read.items():
            tokens = torch.where(routed[name].T.eq(expert))[1]  # the first choice of every token, then the second
            counted = (tokens >= response.start) & (tokens < response.stop)
            if counted.any():
                found[Matrix(name, expert)].append(torch.cat(rows)[counted])
    return {matrix: torch.cat(rows) for matrix, rows in found.items()}


def _note(routed: dict[str, torch.Tensor], name: str) -> Any:
    def hook(_: torch.nn.Module, seen: tuple[torch.Tensor, ...]) -> None:
        routed[name] = seen[1]  # (tokens, choices)

    return hook


def brute_force_directions(reads: torch.Tensor, matrix: torch.Tensor, count: int) -> torch.Tensor:
    """(out, m) top right singular vectors of Y = X M^T by the decomposition of Y itself, as far as Y has rank."""
    _, values, vectors = torch.linalg.svd(reads.double() @ matrix.double().T, full_matrices=False)
    rank = int((values > 1e-6 * values[0]).sum())
    leading: torch.Tensor = vectors[: min(count, rank)].T
    return leading
