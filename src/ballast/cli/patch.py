"""The commands of `ballast patch`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.options import Model
from ballast.cli.output import show
from ballast.models import open_model
from ballast.patches import Patch, export

patch_app = typer.Typer(help="Look at, combine and apply patches.", no_args_is_help=True, rich_markup_mode=None)
PatchPath = Annotated[Path, typer.Argument(help="Patch file.")]
Folder = Annotated[Path, typer.Option(help="New folder for the checkpoint.")]


@patch_app.command()
def info(patch: PatchPath) -> None:
    """What a patch changes, in numbers."""
    loaded = Patch.load(patch)
    found = dataclasses.asdict(loaded.info()) | {"base": loaded.header.base.model_dump()}
    show(found, (), "\n".join(f"{name}: {value}" for name, value in found.items()))


@patch_app.command()
def diff(first: PatchPath, second: PatchPath) -> None:
    """Two patches side by side, as counts of weights."""
    found = dataclasses.asdict(Patch.load(first).diff(Patch.load(second)))
    show(found, (), "\n".join(f"{name}: {value}" for name, value in found.items()))


@patch_app.command("apply")
def apply_(model: Model, patch: PatchPath, out: Folder) -> None:
    """Write a plain checkpoint with the patch applied, which any library opens."""
    folder = export(open_model(model), Patch.load(patch), out)
    show({"checkpoint": str(folder)}, (), f"Checkpoint: {folder}")


@patch_app.command()
def revert(model: Model, patch: PatchPath, out: Folder) -> None:
    """Write a plain checkpoint with the patch taken back, bit for bit the original weights."""
    lm = open_model(model)
    Patch.load(patch).revert(lm.model)
    folder = export(lm, None, out)
    show({"checkpoint": str(folder)}, (), f"Checkpoint: {folder}")
