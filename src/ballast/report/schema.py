"""What the report expects in the artefacts that no other room reads back; fields it does not show are ignored."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from ballast.regions.metadata import Coverage


class Artefact(BaseModel):
    """Base of every record read from a run directory."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Model(Artefact):
    """The checkpoint that was worked on; `parameters` is a count."""

    source: str
    name: str
    revision: str | None = None
    parameters: int | None = None
    dtype: str | None = None


class Step(Artefact):
    """One step of a run."""

    state: str
    seconds: float | None = None


class PromptSource(Artefact):
    """Identity of a prompt set: the SHA-256 of its rows and their number."""

    hash: str
    n: int


class Run(Artefact):
    """`run.json`."""

    command: str
    settings: dict[str, Any] = {}
    model: Model | None = None
    prompt_sets: dict[str, PromptSource] = {}
    versions: dict[str, str] = {}
    seed: int | None = None
    state: str = "running"
    created: str | None = None
    steps: dict[str, Step] = {}


class Cell(Artefact):
    """Selected and existing entries of one role in one layer; `layer` is None outside the layer stack."""

    layer: int | None
    role: str
    selected: int
    size: int


class RegionPrompts(Artefact):
    """The prompts by which a region was located."""

    name: str
    n: int


class RegionInfo(Artefact):
    """`region.json`."""

    method: str
    fidelity: str | None = None
    fraction: float
    scope: str
    layers: list[int] | None = None
    requested: int
    actual: int
    eligible: int
    threshold: float | None = None
    prompts: RegionPrompts | None = None
    cells: list[Cell] = []
    coverage: Coverage = Coverage()


class PatchInfo(Artefact):
    """`patch.json`; `bytes` is the size of the patch file."""

    entries: int
    tensors: int
    bytes: int


class Check(Artefact):
    """Rates on the select split after some optimizer step."""

    attack_success_rate: float
    over_refusal: float
    n_harmful: int | None = None
    n_harmless: int | None = None


class TrainingRow(Artefact):
    """One line of `harden.jsonl`: a step with its losses (nats per token), or a check on the select split."""

    step: int
    loss: float | None = None
    refuse: float | None = None
    help: float | None = None
    select: Check | None = None


class Selection(Check):
    """One check as `harden.json` repeats it."""

    step: int


class Harden(Artefact):
    """`harden.json`."""

    settings: dict[str, Any] = {}
    steps: int
    chosen_step: int
    trained_entries: int | None = None
    state_bytes: int | None = None
    dense_state_bytes: int | None = None
    selection: list[Selection] = []
    reason: str = ""


class Completion(Artefact):
    """One generated answer."""

    id: str
    prompt: str
    answer: str
