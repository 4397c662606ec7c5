"""Options that several commands share, and the model that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ballast.models import LanguageModel, open_model
from ballast.patches import Patch

Model = Annotated[str, typer.Argument(help="smollm2, a checkpoint folder, or a hub id.", metavar="MODEL")]
Out = Annotated[Path, typer.Option(help="Folder for the results; the same command continues there.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Limit = Annotated[int | None, typer.Option(help="This many prompts of each set, drawn with the seed.", min=1)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
PatchFile = Annotated[Path | None, typer.Option("--patch", help="Patch to apply in memory first.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Read layer by layer from the files: for a model that does not fit."),
]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Accept pickled weights, which can run code.")]


def opened(
    model: str,
    dtype: str,
    revision: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    patch: Path | None = None,
    stream: bool = False,
) -> LanguageModel:
    """The model of a command, with a patch applied if one is given."""
    lm = open_model(
        model,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        stream=stream,
    )
    if patch:
        Patch.load(patch).apply(lm.model)
    return lm
