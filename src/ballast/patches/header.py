"""What a patch file says about itself, as JSON in its metadata."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class HeaderPart(BaseModel):
    """Base of the header's records; immutable, unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(HeaderPart):
    """The model that a patch was made for, as the user named it; for readers, identity is in the fingerprints."""

    source: str
    name: str
    revision: str | None = None


class TensorRecord(HeaderPart):
    """One patched tensor: its shape and dtype, and its fingerprint (`tensor_fingerprint`) before and after."""

    shape: tuple[NonNegativeInt, ...]
    dtype: str
    base: str = Sha256
    patched: str = Sha256

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype as torch knows it; None if it does not."""
        found = getattr(torch, self.dtype, None)
        return found if isinstance(found, torch.dtype) else None


class Header(HeaderPart):
    """The metadata of a patch.

    Attributes:
        format: Version of the file layout.
        base: The model it was made for.
        parameters: Number of parameters of that model, each tied one counted once.
        tensors: One record per patched tensor.
        settings: How the patch was made; any JSON.
        version: The version of Ballast that made it.
    """

    format: Literal[1] = 1
    base: Origin
    parameters: PositiveInt
    tensors: dict[str, TensorRecord]
    settings: dict[str, Any] = {}
    version: str = Field(default_factory=lambda: importlib.metadata.version("ballast-llm"))
