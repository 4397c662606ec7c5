"""What the config of a PEFT adapter says: rank and scale of each update, and whether it is plain LoRA at all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ballast.errors import ModelError
from ballast.models.parts import Part

Number = TypeVar("Number", int, float)
VARIANTS = (  # whose update is not, or not only, scale * B A
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "layer_replication",
)
# Other ways to begin subtract the first B A from the base weights, so that the last one is not the update.
PLAIN_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal", "mica")


class AdapterConfig(BaseModel):
    """What is read of `adapter_config.json`; PEFT's names and defaults.

    Attributes:
        peft_type: `LORA`.
        base_model_name_or_path: What it was trained on, in the words of its maker.
        r: Rank where `rank_pattern` gives no other.
        lora_alpha: Numerator of the scale where `alpha_pattern` gives no other.
        rank_pattern: Ranks by module name or regular expression.
        alpha_pattern: Numerators likewise.
        use_rslora: Whether the denominator is the root of the rank instead of the rank.
        init_lora_weights: How training began.
        peft_version: What saved it.
    """

    model_config = ConfigDict(extra="allow")

    peft_type: str
    base_model_name_or_path: str | None = None
    r: int = Field(default=8, gt=0)
    lora_alpha: float = 8
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    peft_version: str = ""

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _are_expressions(cls, patterns: dict[str, float] | None) -> dict[str, float] | None:
        try:
            for pattern in patterns or {}:
                re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression") from error
        return patterns

    def rank(self, part: Part) -> int:
        """The rank of a parameter's update, for each expert."""
        return _matching(self.rank_pattern or {}, part, self.r)

    def scale(self, part: Part) -> float:
        """The factor of B A."""
        alpha, rank = _matching(self.alpha_pattern or {}, part, self.lora_alpha), self.rank(part)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def before(self, version: tuple[int, int]) -> bool:
        """Whether PEFT was older when it saved the adapter; versions before 0.18 did not say which they were."""
        return tuple(map(int, re.findall(r"\d+", self.peft_version)[:2])) < version


def read_config(folder: Path) -> AdapterConfig:
    """Read the config in an adapter's folder.

    Raises:
        ModelError: It is missing or damaged, or the adapter is not plain LoRA, whose update is scale * B A.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no adapter_config.json; give the folder of a PEFT LoRA adapter.")
    try:
        config = AdapterConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(f"{path} is damaged ({place}: {first['msg']}); save the adapter again.") from error
    if config.peft_type != "LORA":
        raise ModelError(f"{folder} is a PEFT adapter of type {config.peft_type}; only LORA can be read.")
    used = [variant for variant in VARIANTS if (config.model_extra or {}).get(variant)]
    if config.init_lora_weights not in PLAIN_BEGINNINGS:
        used.append(f"init_lora_weights={config.init_lora_weights}")
    if used:
        raise ModelError(
            f"The update of {folder} is not B A alone ({', '.join(used)}); merge it with PEFT and give the checkpoint "
            "it started from as base."
        )
    return config


def _matching(patterns: Mapping[str, Number], part: Part, default: Number) -> Number:
    """The value of the first pattern that matches the end of a module's name, as PEFT looks it up."""
    key = part.name if part.expert_dim is not None else part.name.removesuffix(".weight")
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", key):
            return value
    return default
