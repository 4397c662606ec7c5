"""Settings of a validation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ballast.errors import UsageError


@dataclass(frozen=True)
class ValidateSettings:
    """What `validate` does to a region, and when it calls an effect shown.

    Attributes:
        ablate: Set the weights to 0.
        noise: Doses of Gaussian noise, in standard deviations of each matrix, above 0; 0.38 is the published one.
        scale: Factors of the weights, at least 0 and other than 1.
        random_regions: Random regions that each disturbance is compared with. With n of them no p-value is below
            1 / (n + 1), times the number of doses that are tested together.
        utility_margin: What disturbing the region may cost more than disturbing random regions, in nats per token.
        max_new_tokens: Tokens after which an answer is cut.
        judge: Who judges the answers.
        seed: Of the random regions and the noise.
    """

    ablate: bool = True
    noise: tuple[float, ...] = (0.38,)
    scale: tuple[float, ...] = ()
    random_regions: int = 20
    utility_margin: float = 0.1
    max_new_tokens: int = 48
    judge: str = "embedded"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name in ("noise", "scale"):
            doses = getattr(self, name)
            if not all(math.isfinite(dose) for dose in doses) or len(set(doses)) < len(doses):
                raise UsageError(f"The doses of {name} are {list(doses)}; give finite numbers, each once.")
        if not all(dose > 0 for dose in self.noise):
            raise UsageError(f"The doses of noise are {list(self.noise)}; each must be above 0.")
        if not all(factor >= 0 and factor != 1 for factor in self.scale):
            raise UsageError(f"The factors of scale are {list(self.scale)}; give at least 0, and not 1.")
        for name in ("random_regions", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"The setting {name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.utility_margin < math.inf:
            raise UsageError(f"The setting utility_margin is {self.utility_margin}; it must be above 0.")

    def record(self) -> dict[str, Any]:
        """What a manifest keeps: what decides the result of a cell. Doses and random regions may be added to a run."""
        return {name: getattr(self, name) for name in ("max_new_tokens", "judge", "seed")}

    def written(self) -> dict[str, Any]:
        """Every setting, as JSON has it."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
