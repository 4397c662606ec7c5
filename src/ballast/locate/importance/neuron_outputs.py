"""How much the output of a sublayer changes without a feed-forward, output or value neuron; exact for each prompt.

With h what the down projection reads and z what the output projection reads, (tokens, heads, d):

    feed-forward k     |h[:, k]| * |W_down[:, k]|                         h times the router's share, for experts
    output (head, d)   |z[:, head, d]| * |W_o[:, (head, d)]|
    value (g, d)       root of sum over tokens of | sum over heads of group g of z[t, head, d] * W_o[:, (head, d)] |^2

All norms are Euclidean, over tokens or over the outputs of a matrix. Attention mixes values linearly, so without value
neuron (g, d) just the entries z[:, head, d] of the heads of group g are gone. The square is the sum over pairs of these
heads of (sum over tokens of z z') times the inner product of the two columns of W_o.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from ballast.locate.inputs import Inputs
from ballast.models import LanguageModel
from ballast.models.attention import precise
from ballast.models.parts import Part
from ballast.models.units import UnitGroup


class OutputChanges:
    """Takes in what the down and output projections read and fills tables of importances.

    Attributes:
        readers: Numbers of the groups that are scored by what a matrix reads, by parameter and expert.
    """

    def __init__(self, lm: LanguageModel, groups: Sequence[UnitGroup]) -> None:
        """Prepare the columns of the matrices that read the neurons of the `groups`; other kinds are passed over."""
        self.groups = groups
        self.readers: dict[tuple[str, int | None], list[int]] = defaultdict(list)
        self._columns: dict[int, torch.Tensor] = {}
        for number, group in enumerate(groups):
            if part := _reader(lm, group):
                self.readers[part.name, group.expert].append(number)
                matrix = _matrix(lm, part, group.expert)
                if group.kind == "value":
                    self._columns[number] = _products(matrix, group)
                else:
                    line = next(line for line in group.lines if line.part is part)
                    self._columns[number] = matrix.norm(dim=0)[line.positions.flatten().to(matrix.device)]

    def add(self, inputs: Inputs, mask: torch.Tensor, tables: Sequence[torch.Tensor]) -> None:
        """Write the importances of the neurons that these inputs are made of.

        Args:
            inputs: What one matrix reads.
            mask: (B, T), 1 at tokens and 0 at padding.
            tables: (B, m) importances per group, to be filled.
        """
        for number in self.readers.get((inputs.part.name, inputs.expert), ()):
            group, columns = self.groups[number], self._columns[number]
            if group.kind == "value":
                found = _of_values(inputs, mask, group, columns)
            else:
                line = next(line for line in group.lines if line.part.name == inputs.part.name)
                found = _norms(inputs, mask)[:, line.positions.flatten().to(mask.device)] * columns
            tables[number].copy_(found)


def _reader(lm: LanguageModel, group: UnitGroup) -> Part | None:
    """The matrix whose inputs tell the importance of these neurons; None for query and key."""
    if group.kind == "value":
        return lm.parts.by_layer()[group.layer].get("output")
    read = [line.part for line in group.lines if not line.outputs]
    return read[0] if read else None


def _matrix(lm: LanguageModel, part: Part, expert: int | None) -> torch.Tensor:
    """One weight matrix, (out, in) fp32."""
    weight = lm.weight(part.name)
    matrix = precise(weight if expert is None else weight[expert])
    return matrix if part.orientation == "out_in" else matrix.T


def _products(matrix: torch.Tensor, group: UnitGroup) -> torch.Tensor:
    """(g, d, G, G) inner products of the columns with which the heads of a group read one value neuron."""
    keys, size = group.shape
    columns = matrix.reshape(len(matrix), keys, -1, size)  # (out, g, G, d)
    return torch.einsum("ogad,ogcd->gdac", columns, columns)


def _norms(inputs: Inputs, mask: torch.Tensor) -> torch.Tensor:
    """(B, in) norm over the tokens of each prompt."""
    values = precise(inputs.values)
    squares = (values if inputs.shares is None else values * inputs.shares.unsqueeze(1)).square()
    return (_members(inputs, mask, squares.dtype) @ squares).sqrt()


def _of_values(inputs: Inputs, mask: torch.Tensor, group: UnitGroup, products: torch.Tensor) -> torch.Tensor:
    """(B, m) importances of value neurons by what the output projection reads."""
    keys, size = group.shape
    mixed = precise(inputs.values).reshape(len(inputs.values), keys, -1, size)  # (N, g, G, d)
    pairs = torch.einsum("ngad,ngcd->ngdac", mixed, mixed)
    sums = (_members(inputs, mask, pairs.dtype) @ pairs.flatten(1)).reshape(-1, *pairs.shape[1:])
    return (sums * products).sum(dim=(-2, -1)).clamp_min(0).sqrt().flatten(1)


def _members(inputs: Inputs, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, N) 1 where a token belongs to a prompt."""
    rows, width = mask.shape
    tokens = torch.arange(rows * width, device=mask.device) if inputs.tokens is None else inputs.tokens
    members = torch.zeros(rows, len(tokens), dtype=dtype, device=mask.device)
    members[tokens // width, torch.arange(len(tokens), device=mask.device)] = mask.flatten()[tokens].to(dtype)
    return members
