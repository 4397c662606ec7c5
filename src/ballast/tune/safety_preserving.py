"""Safety Preserving Adaptation (SPA, arXiv 2604.08297): fine-tune everything but the weights of a safety region."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ballast.errors import ProtectionError, RegionError
from ballast.models.fingerprint import tensor_fingerprint
from ballast.regions import Region
from ballast.shards import whole
from ballast.tune.protection import Protection

WRAPPERS = ("module.", "_orig_mod.")  # of data parallel and compiled models
NARROW = (torch.bfloat16, torch.float16)


class SafetyPreserving(TrainerCallback):
    """Keeps a region's weights as they are, bit for bit, in any training with a torch optimizer.

    For the Trainer of transformers and those built on it, give it as a callback:

        trainer = Trainer(..., callbacks=[SafetyPreserving(region)])

    In a training loop of your own:

        safety = SafetyPreserving(region)
        safety.protect(model, optimizer)
        ...  # train
        safety.verify()

    After each optimizer step the values are written back. They are read when the Trainer is made, so that a run that
    resumes from a checkpoint is protected by the values of the model that it began with. Training ends with an error
    if a step was made that the protection did not see, and if any protected bit differs in the end.
    """

    def __init__(self, region: Region) -> None:
        """Protect `region`; the model must hold the weights on which it was located."""
        self.region = region
        self._protection: Protection | None = None
        self._steps = 0

    def protect(self, model: nn.Module, *optimizers: Optimizer) -> None:
        """Remember the values of the region, and write them back after each step of these optimizers.

        Args:
            model: The model that will be trained, as it was when the region was located; float32 training of a model
                located in a narrower dtype is fine.
            optimizers: All that train it.

        Raises:
            RegionError: The region belongs to another model.
            ProtectionError: An optimizer trains nothing that would be protected.
        """
        self._remember(model)
        assert self._protection is not None
        for optimizer in optimizers:
            self._protection.attach(optimizer)

    def verify(self) -> None:
        """Make sure that every weight of the region has the bits it had.

        Raises:
            ProtectionError: One has not, or nothing was protected so far.
        """
        if self._protection is None:
            raise ProtectionError("Nothing is protected yet; call protect, or give this to a Trainer as a callback.")
        self._protection.verify()

    def _remember(self, model: nn.Module) -> None:
        require_values(self.region, model)
        self._protection = Protection(own_names(model), self.region.indices)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Read the values before anything can change them."""
        if args.deepspeed:
            raise ProtectionError(
                "DeepSpeed keeps weights that it trains elsewhere, so they cannot be protected; use FSDP."
            )
        self._remember(named["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Attach to the optimizer."""
        if self._protection is None:
            self._remember(named["model"])
        assert self._protection is not None
        self._protection.follow(own_names(named["model"]))  # where the Trainer spread the model over processes
        self._protection.attach(named["optimizer"])
        self._protection.restore()  # where a checkpoint was loaded
        self._steps = self._protection.restored

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Make sure that the step that was made was seen."""
        assert self._protection is not None
        if self._protection.restored == self._steps and not getattr(named["optimizer"], "step_was_skipped", False):
            raise ProtectionError(
                f"Step {state.global_step + 1} was made by an optimizer that the protection is not attached to; "
                "do not exchange the optimizer or remove its hooks while training."
            )
        self._steps = self._protection.restored

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Verify what was saved."""
        self.verify()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Verify the result."""
        self.verify()


def require_values(region: Region, model: nn.Module) -> None:
    """Refuse a model whose values are not those that a region was located on, whatever the dtype.

    Raises:
        RegionError: They are not, or a parameter is missing.
    """
    parameters = own_names(model)
    for name in region.indices:
        if name not in parameters:
            raise RegionError(
                f"The model has no parameter {name}, which the region holds weights of; protect a model like "
                f"{region.metadata.model.source}, not an adapter around it."
            )
        if not holds(parameters[name], region.metadata.model.fingerprints[name]):
            raise RegionError(
                f"{name} holds other values than those the region was located on; make the Trainer with the "
                f"callback before it resumes, on {region.metadata.model.source}."
            )


def own_names(model: nn.Module) -> dict[str, Parameter]:
    """Parameters by the names they have without wrappers."""
    found = {}
    for name, parameter in model.named_parameters():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        found[name] = parameter
    return found


def holds(parameter: Parameter, fingerprint: str) -> bool:
    """Whether a parameter has these numbers, in its own dtype or in another one that holds them exactly."""
    if tensor_fingerprint(parameter) == fingerprint:
        return True
    values = whole(parameter.detach()).float()
    cast = (values.to(dtype) for dtype in (torch.float32, *NARROW) if dtype != parameter.dtype)
    return any(torch.equal(one.float(), values) and tensor_fingerprint(one) == fingerprint for one in cast)
