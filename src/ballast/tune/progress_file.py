"""Where hardening stands: steps done, checks, the best weights so far and the optimizer's state, in one file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ballast.errors import RunError
from ballast.runs import write_tensors
from ballast.tune.checks import Check
from ballast.tune.sparse_adamw import SparseAdamW

KEPT = "kept:"


@dataclass
class Progress:
    """What an interrupted run needs to continue with the same result.

    Attributes:
        path: The file.
        step: Optimizer steps done.
        checks: The checks so far, the first on the untuned model.
        kept: Values of the selected entries at the best check so far, (k,) per parameter name.
    """

    path: Path
    step: int = 0
    checks: list[Check] = field(default_factory=list)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, optimizer: SparseAdamW) -> Progress:
        """Start anew, or bring optimizer and weights to where the file says the run stood.

        Raises:
            RunError: The file is damaged.
        """
        if not path.exists():
            return cls(path)
        try:
            with safe_open(path, framework="pt") as stored:
                header = json.loads(stored.metadata()["progress"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a dict
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(f"{path} is damaged ({error}); delete its folder and run again.") from error
        optimizer.load_state_tensors({name: value for name, value in tensors.items() if not name.startswith(KEPT)})
        kept = {name.removeprefix(KEPT): value for name, value in tensors.items() if name.startswith(KEPT)}
        return cls(path, header["step"], [Check(**row) for row in header["checks"]], kept)

    def save(self, optimizer: SparseAdamW) -> None:
        """Write the file atomically."""
        tensors = {**optimizer.state_tensors(), **{f"{KEPT}{name}": value for name, value in self.kept.items()}}
        header = {"step": self.step, "checks": [row._asdict() for row in self.checks]}
        write_tensors(
            self.path, {name: value.cpu() for name, value in tensors.items()}, {"progress": json.dumps(header)}
        )
