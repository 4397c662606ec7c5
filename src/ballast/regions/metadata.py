"""What a Region file says about itself, beside its coordinates."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from ballast.errors import RegionError
from ballast.regions.layout import TensorLayout
from ballast.regions.selection import SelectionRecord

SCHEMA_VERSION: Final = 1
TOOL = f"ballast-llm {version('ballast-llm')}"

# no path, blank or control character can pass for the name of a parameter
ParameterName = Annotated[str, StringConstraints(pattern=r"^[^\s/\\.\x00-\x1f]+(\.[^\s/\\.\x00-\x1f]+)*$")]
Granularity = Literal["weight", "neuron", "head", "layer"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelIdentity(_Record):
    """The weights a region was located on.

    Attributes:
        source: What the user opened: a hub id, a path or `smollm2`.
        name: Short name.
        revision: Hub revision, if any.
        fingerprints: SHA-256 per parameter; at least for every parameter with selected entries.
    """

    source: str
    name: str
    revision: str | None = None
    fingerprints: dict[ParameterName, Sha256]


class PromptSource(_Record):
    """The prompts a region was located with; their text is not kept.

    Attributes:
        name: Name of the prompt set.
        hash: SHA-256 of its rows.
        n: Number of prompts used.
    """

    name: str
    hash: str
    n: int


class Scored(_Record):
    """Parameters of one role that took part in the selection."""

    role: str
    tensors: int
    parameters: int


class Skipped(Scored):
    """Parameters of one role that did not take part, and why."""

    reason: str


class Coverage(_Record):
    """What was scored and what was skipped.

    Attributes:
        scored: One row per role.
        skipped: One row per role and reason.
        unobserved: Weight matrices without any gradient, such as experts that no token reached.
    """

    scored: tuple[Scored, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unobserved: tuple[str, ...] = ()


class RegionMetadata(_Record):
    """How a region came about and what it fits; holds no time, so equal regions have equal files.

    Attributes:
        schema_version: Of this record.
        method: Name of the identification method, `random` for a drawn region, or the sign of a set operation.
        variant: Variant of the method.
        fidelity: How close the method is to its publication.
        settings: Every setting of the method, defaults written out.
        granularity: What is selected.
        units: What the sizes in `selection` count: single weights, or units of the granularity.
        selected_units: Per kind the selected units as (layer, expert or -1, number, ...); empty for weights.
        scored_units: How many units of each kind were scored; empty for weights.
        selection: Scope, sizes, threshold and ties; None for a region made from others.
        layout: Every parameter that had scores, with its shape and role. Regions are compared within one layout.
        model: The weights it was located on.
        prompts: The prompts it was located with, if any.
        coverage: What was scored and what was not.
        seed: Of everything random in the method.
        parents: Ids of the regions that this one was made from.
        tool: Name and version of the program.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    method: str
    variant: str | None = None
    fidelity: str | None = None
    settings: dict[str, JsonValue] = {}
    granularity: Granularity = "weight"
    units: Literal["entries", "units"] = "entries"
    selected_units: dict[str, tuple[tuple[int, ...], ...]] = {}
    scored_units: dict[str, int] = {}
    selection: SelectionRecord | None = None
    layout: dict[ParameterName, TensorLayout] = Field(min_length=1)
    model: ModelIdentity
    prompts: PromptSource | None = None
    coverage: Coverage = Coverage()
    seed: int = 0
    parents: tuple[Sha256, ...] = ()
    tool: str = TOOL

    @model_validator(mode="after")
    def _fingerprints_are_of_the_layout(self) -> Self:
        strangers = self.model.fingerprints.keys() - self.layout.keys()
        if strangers:
            raise ValueError(f"fingerprint of {min(strangers)}, which is not in the layout")
        return self

    @property
    def eligible(self) -> int:
        """Number of weights that could have been selected."""
        return sum(tensor.numel for tensor in self.layout.values())

    @property
    def layout_hash(self) -> str:
        """SHA-256 of the names and shapes that could have been selected."""
        shapes = {name: tensor.shape for name, tensor in self.layout.items()}
        return hashlib.sha256(canonical_json(shapes).encode()).hexdigest()

    def to_json(self) -> str:
        """What the id is made from: JSON with sorted keys, without fields that have their defaults.

        A later version can add a field with a default and still read this version's files by their ids.
        """
        written = self.model_dump(mode="json", exclude_defaults=True)
        return canonical_json({**written, "schema_version": self.schema_version, "tool": self.tool})


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no blanks: equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def merged_fingerprints(first: ModelIdentity, second: ModelIdentity) -> dict[str, str]:
    """The fingerprints of both.

    Raises:
        RegionError: They disagree about a parameter.
    """
    for name in sorted(first.fingerprints.keys() & second.fingerprints.keys()):
        if first.fingerprints[name] != second.fingerprints[name]:
            raise RegionError(
                f"The regions come from different weights of {name} ({first.name} and {second.name}); locate both on "
                "one model, or compare them all the same with `ballast overlap --other-weights`."
            )
    return {**first.fingerprints, **second.fingerprints}
