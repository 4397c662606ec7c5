"""Options that several commands share, and the model that they name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from ballast.models import LanguageModel, open_model
from ballast.patches import Patch

Model = Annotated[str, typer.Argument(help="smollm2, a checkpoint folder, or a hub id.", metavar="MODEL")]
Out = Annotated[Path, typer.Option(help="Folder for the results; the same command continues there.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Limit = Annotated[int | None, typer.Option(help="This many prompts of each set, drawn with the seed.", min=1)]
PatchFile = Annotated[Path | None, typer.Option("--patch", help="Patch to apply in memory first.")]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Read layer by layer from the files: for a model that does not fit."),
]


class Opening(NamedTuple):
    """How a command opens models."""

    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")
    ] = False
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Accept pickled weights, which can run code.")
    ] = False

    def model(self, source: str, patch: Path | None = None, *, stream: bool = False) -> LanguageModel:
        """A model, with a patch applied if one is given."""
        lm = open_model(source, stream=stream, **self._asdict())
        if patch:
            Patch.load(patch).apply(lm.model)
        return lm


def opens_models(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Opening`, which it gets as its parameter `opening`."""
    own = inspect.signature(command, eval_str=True)
    types = get_type_hints(Opening, include_extras=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in Opening._field_defaults.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        opening = Opening(**{name: given.pop(name) for name in Opening._fields})
        command(**given, opening=opening)

    kept = [parameter for name, parameter in own.parameters.items() if name != "opening"]
    vars(run)["__signature__"] = own.replace(parameters=[*kept, *options])  # what typer makes options of
    return run
