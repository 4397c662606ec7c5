"""Safe LoRA's test of modules: how far a fine-tuning update leaves the direction of alignment (arXiv 2405.16833).

    score = 1 - cos(C dW, dW),   C = V V^T / ||V||_F,   V = aligned - base of the module, (out, in)

dW = scale * B A is what a LoRA adapter adds to the aligned model. The cosine lies in [0, 1], since C is positive
semidefinite, and the scale of C does not matter. All weights of a module have one score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ballast.errors import UsageError
from ballast.locate.checkpoints.adapter import LowRank, read_adapter
from ballast.locate.checkpoints.base_checkpoint import difference, open_base, unchanged
from ballast.locate.checkpoints.directions import matrices_of
from ballast.locate.engine import eligible_parameters
from ballast.locate.registry import Found, Task, register
from ballast.regions.metadata import Granularity


@register("safe_lora")
@dataclass(frozen=True)
class SafeLora:
    """Settings of Safe LoRA; the model that is located in is the aligned one, without the adapter.

    Attributes:
        base: The checkpoint that alignment started from, as for `open_model`.
        adapter: Folder of the PEFT LoRA adapter that was trained on the aligned model.
        exact_projector: Take the orthogonal projection on the column space of V in the place of C, as far as V is more
            than the rounding of the weights.
    """

    name: ClassVar[str]
    granularity: ClassVar[Granularity] = "weight"
    reference: ClassVar[str] = "Hsu et al., NeurIPS 2024, arXiv 2405.16833"
    fidelity: ClassVar[str] = (
        "reference code: the cosine of each module; deviations: modules are ranked by it and the share of weights is "
        "chosen at selection, where the authors take cosines of at most 0.5 or the ten lowest; cosines in fp64; the "
        "exact projector is ours"
    )
    needs: ClassVar[str] = "the base checkpoint, and an adapter trained on the aligned model"

    base: str = ""
    adapter: str = ""
    exact_projector: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not (self.base and self.adapter):
            raise UsageError("The method safe_lora compares an adapter with a base checkpoint; give base and adapter.")
        if not isinstance(self.exact_projector, bool):
            raise UsageError(f"The setting exact_projector is {self.exact_projector!r}; give true or false.")

    def score(self, task: Task) -> Found:
        """Score every weight by its module; modules without an update, or that alignment did not change, score 0."""
        lm = task.lm
        adapter, base = read_adapter(lm, self.adapter), open_base(lm, self.base)
        alignment = difference(lm, base)
        still = unchanged(lm, alignment)
        scores = {name: torch.zeros_like(changed) for name, changed in alignment.items()}
        scored, changed = matrices_of(lm, scores), matrices_of(lm, alignment)
        weights = matrices_of(lm, eligible_parameters(lm))
        epsilon = max(torch.finfo(one.model.dtype).eps for one in (lm, base))
        cosines, undefined = {}, []
        for matrix, update in adapter.factors.items():
            least = rounding(weights[matrix], epsilon) if self.exact_projector else None
            cosine = alignment_cosine(changed[matrix], update, least)
            if cosine is None:
                undefined.append(str(matrix))
            else:
                cosines[str(matrix)] = cosine
                scored[matrix].fill_(1 - cosine)
        notes = {
            "base_model": base.identity(),
            "unchanged": still,
            "adapter_fingerprint": adapter.fingerprint,
            "adapter_left_out": adapter.left_out,
            "cosines": cosines,
            "undefined": undefined,
        }
        return Found(scores, notes)


def alignment_cosine(changed: torch.Tensor, update: LowRank, least: float | None = None) -> float | None:
    """cos(D D^T dW, dW) of two matrices as vectors; 0 if nothing of the update lies in the directions D.

    Args:
        changed: V = aligned - base, (out, in), which is also D.
        update: The factors of dW.
        least: If given, D is an orthonormal basis of the column space of V, singular values up to this taken as 0.

    Returns:
        A number in [0, 1]; None if V or dW is 0.
    """
    directions = changed.double()
    if least is not None:
        vectors, values, _ = torch.linalg.svd(directions, full_matrices=False)
        directions = vectors[:, values > least]
    left, right = (factor.to(directions) for factor in update)
    whole, part = left @ right, directions @ (directions.T @ left) @ right
    if not directions.any() or not whole.any():
        return None
    lengths = float(whole.norm() * part.norm())
    return min(float((whole * part).sum()) / lengths, 1.0) if lengths else 0.0  # rounding can carry it past 1


def rounding(weight: torch.Tensor, epsilon: float) -> float:
    """How large a singular value the rounding of a weight matrix alone can have.

    Errors of at most epsilon |w| that know nothing of each other have a spectral norm of at most about
    epsilon * (root mean square of the weights) * (sqrt(out) + sqrt(in)).
    """
    rows, columns = weight.shape
    return epsilon * float(weight.double().norm()) * (1 / math.sqrt(rows) + 1 / math.sqrt(columns))
