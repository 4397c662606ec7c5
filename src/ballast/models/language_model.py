"""A model that was opened: weights, tokenizer, where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ballast.models.fingerprint import cached_fingerprints, combined, fingerprints
from ballast.models.parts import PartMap, part_map
from ballast.models.quantised import is_opaque, quantised_error
from ballast.shards import own_part


@dataclass(eq=False)
class LanguageModel:
    """A causal language model ready for use; made by `ballast.open_model`.

    Attributes:
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        source: What the user asked for: `smollm2`, a hub id or a path.
        revision: The hub revision that was asked for, if any.
        files: The local weight files it was read from; empty if they are not known.
        stored: Weights that are read from files when asked for, by parameter name; empty unless the model is streamed.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    revision: str | None = None
    files: tuple[Path, ...] = field(default=(), repr=False)
    stored: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The last piece of the source."""
        return Path(self.source).name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def context(self) -> int:
        """The longest sequence in tokens that the model takes."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30)

    @property
    def pad_id(self) -> int:
        """The token id used for padding; masked everywhere, so any id serves a tokenizer that names none."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    @cached_property
    def parts(self) -> PartMap:
        """Every parameter with its layer, role and orientation."""
        return part_map(self.model)

    def weight(self, name: str) -> torch.Tensor:
        """The values of a parameter, without gradient; read from its file if the model is streamed.

        Args:
            name: As in `model.named_parameters()`.
        """
        return self.stored.get(name, self.model.get_parameter(name)).detach()

    def __post_init__(self) -> None:
        """Note the state of the weights, so that a later change is seen.

        Raises:
            ModelError: Weights are quantised tensors of a class of their own, whose bits cannot be read.
        """
        parameters = self.model.named_parameters()
        if opaque := {name: type(tensor).__name__ for name, tensor in parameters if is_opaque(tensor)}:
            raise quantised_error(self.model, opaque)
        self._opened_as = self._versions()

    def _versions(self) -> list[tuple[int, int]]:
        # torch counts the in-place changes of each tensor; writes through `.data` are not counted
        return [(own_part(parameter).data_ptr(), parameter._version) for parameter in self.model.parameters()]

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 per parameter of the weights as they are now.

        As long as they are unchanged since they were opened, the values are remembered by the stamps of the files.
        """
        if self._versions() == self._opened_as:
            return cached_fingerprints(self.model, self.files, self.stored)
        return fingerprints(self.model, self.stored)

    def identity(self) -> dict[str, Any]:
        """What a manifest records of the model: source, revision, class, dtype, size and fingerprint."""
        return {
            "source": self.source,
            "name": self.name,
            "revision": self.revision,
            "class": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "fingerprint": combined(self.fingerprints()),
        }
