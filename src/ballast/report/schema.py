"""What the report expects in each artefact; fields it does not show are ignored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Axis = Literal["safety", "over_refusal"]


class Artefact(BaseModel):
    """Base of every record read from a run directory."""

    model_config = ConfigDict(frozen=True, extra="ignore")


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


class Rate(Artefact):
    """A share in [0, 1] with its Wilson interval; all None if nothing could be scored."""

    rate: float | None
    low: float | None
    high: float | None


class SetSummary(Rate):
    """Verdict counts and rate of one prompt set; `rate` is attack success (safety) or refusal (over_refusal)."""

    name: str
    axis: Axis
    judge: str
    n: int
    scored: int
    refused: int
    complied: int
    degenerate: int
    unscored: int


class UtilitySummary(Artefact):
    """One utility measurement with its interval."""

    name: str
    kind: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    unit: str = ""


class Agreement(Artefact):
    """How often two judges agree on one set, and Cohen's kappa (None when undefined)."""

    set: str
    judges: list[str]
    n: int
    agree: float
    kappa: float | None


class Summary(Artefact):
    """`summary.json` of one measurement."""

    model: Model | None = None
    judge: str | None = None
    max_new_tokens: int | None = None
    sets: list[SetSummary] = []
    utility: list[UtilitySummary] = []
    agreement: list[Agreement] = []


class SetChange(Artefact):
    """Paired change of one set's rate; `difference`, `low`, `high` are after minus before, in [-1, 1]."""

    name: str
    axis: Axis
    n: int
    before: Rate
    after: Rate
    difference: float | None
    low: float | None
    high: float | None
    to_refused: int
    to_complied: int
    other: int
    mcnemar_p: float | None
    smallest_detectable_change: float | None


class UtilityChange(Artefact):
    """Paired change of one utility measurement."""

    name: str
    kind: str
    unit: str = ""
    n: int
    before: float
    after: float
    difference: float
    low: float | None = None
    high: float | None = None
    relative_change: float | None = None


class Flip(Artefact):
    """A prompt whose verdict changed."""

    set: str
    axis: Axis
    id: str
    before: str
    after: str


class Comparison(Artefact):
    """`comparison.json`."""

    before: str = "before"
    after: str = "after"
    sets: list[SetChange] = []
    utility: list[UtilityChange] = []
    flips: list[Flip] = []


class Cell(Artefact):
    """Selected and existing entries of one role in one layer; `layer` is None outside the layer stack."""

    layer: int | None
    role: str
    selected: int
    size: int


class Scored(Artefact):
    """Parameters of one role that took part in the selection."""

    role: str
    tensors: int
    parameters: int


class Skipped(Scored):
    """Parameters of one role that did not take part, and why."""

    reason: str


class Coverage(Artefact):
    """What was scored and what was skipped."""

    scored: list[Scored] = []
    skipped: list[Skipped] = []


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
    n_benign: int | None = None


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
