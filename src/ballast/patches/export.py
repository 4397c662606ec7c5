"""Write a patched model as a plain checkpoint that any library opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from transformers import PreTrainedModel

from ballast.models import LanguageModel
from ballast.models.streaming import require_in_memory
from ballast.patches.folder import new_folder
from ballast.patches.patch import Patch

# Settings of `generate` that do nothing unless it samples.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def export(lm: LanguageModel, patch: Patch | None, folder: Path | str) -> Path:
    """Write model and tokenizer with a patch applied; the model in memory is left as it was.

    The checkpoint is written beside its destination and renamed when it is complete.

    Args:
        lm: The model the patch was made for, with the patch applied or not.
        patch: What to apply; None writes the weights as they are.
        folder: Destination; must not exist or must be empty.

    Returns:
        The folder.

    Raises:
        PatchError: The folder is in use, or the patch is for another model.
        RunError: The folder cannot be written.
        ModelError: The model is streamed.
    """
    require_in_memory(lm.model.parameters())
    folder = Path(folder)
    with new_folder(folder, "checkpoint") as partial:
        with patch.applied(lm.model) if patch else nullcontext(), _valid_generation_settings(lm.model):
            lm.model.save_pretrained(partial)
        lm.tokenizer.save_pretrained(partial)
    return folder


@contextmanager
def _valid_generation_settings(model: PreTrainedModel) -> Iterator[None]:
    """Leave out sampling settings that have no effect.

    transformers opens a checkpoint that has them, but refuses to save one once any generation setting was changed, and
    `open_model` changes `max_length`.
    """
    settings = model.generation_config
    idle = {} if settings is None or settings.do_sample else {name: getattr(settings, name, None) for name in SAMPLING}
    for name in idle:
        setattr(settings, name, None)
    try:
        yield
    finally:
        for name, value in idle.items():
            setattr(settings, name, value)
