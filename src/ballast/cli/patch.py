"""The commands of `ballast patch`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from ballast.cli.options import Model, Opening, opens_models
from ballast.cli.output import show, table
from ballast.errors import PatchError
from ballast.patches import Patch, export, export_adapter, stack
from ballast.patches.stack import OnConflict
from ballast.report import patch_card
from ballast.runs import write_text

patch_app = typer.Typer(help="Look at, combine and apply patches.", no_args_is_help=True, rich_markup_mode=None)
PatchPath = Annotated[Path, typer.Argument(help="Patch file.")]
Folder = Annotated[Path, typer.Option(help="New folder for the checkpoint.")]


def refuse_existing(path: Path) -> None:
    """Never write over something that is there.

    Raises:
        PatchError: The path is taken.
    """
    if path.exists():
        raise PatchError(f"{path} exists; give a new file.")


def conflict_tables(conflicts: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """The table of disputed weights; none without any."""
    rows = [
        (name, f"{row['entries']:,}", f"{100 * row['share']:.3g}", f"{row['largest']:.3g}")
        for name, row in conflicts.items()
    ]
    columns = ("tensor", "weights", "% of those set", "largest difference")
    return [table("Set to different values", columns, rows)] if rows else []


@patch_app.command()
def info(patch: PatchPath) -> None:
    """What a patch changes, in numbers."""
    loaded = Patch.load(patch)
    found = dataclasses.asdict(loaded.info()) | {"base": loaded.header.base.model_dump()}
    show(found, (), "\n".join(f"{name}: {value}" for name, value in found.items()))


@patch_app.command()
def diff(first: PatchPath, second: PatchPath) -> None:
    """Two patches side by side: shared weights, and those set to different values, by tensor."""
    found = dataclasses.asdict(Patch.load(first).diff(Patch.load(second)))
    counts = "\n".join(f"{name}: {value}" for name, value in found.items() if name != "conflicts")
    show(found, conflict_tables(found["conflicts"]), counts)


@patch_app.command("stack")
@opens_models
def stack_(
    model: Model,
    patches: Annotated[list[Path], typer.Argument(help="Patch files, in order.")],
    out: Annotated[Path, typer.Option(help="New patch file.")],
    on_conflict: Annotated[
        str, typer.Option(help="For weights set to different values: error, last or sum (of the changes).")
    ] = "error",
    *,
    opening: Opening,
) -> None:
    """One patch with the effect of several on their common base."""
    refuse_existing(out)
    lm = opening.model(model)
    made = stack([Patch.load(path) for path in patches], lm.model, on_conflict=cast("OnConflict", on_conflict))
    made.patch.save(out)
    conflicts = {name: dataclasses.asdict(conflict) for name, conflict in made.conflicts.items()}
    entries = made.patch.info().entries
    show(
        {"patch": str(out), "entries": entries, "conflicts": conflicts},
        conflict_tables(conflicts),
        f"{entries:,} weights, {sum(row['entries'] for row in conflicts.values()):,} of them disputed. Patch: {out}",
    )


@patch_app.command("apply")
@opens_models
def apply_(
    model: Model,
    patch: PatchPath,
    out: Folder,
    *,
    opening: Opening,
) -> None:
    """Write a plain checkpoint with the patch applied, which any library opens."""
    lm = opening.model(model)
    folder = export(lm, Patch.load(patch), out)
    show({"checkpoint": str(folder)}, (), f"Checkpoint: {folder}")


@patch_app.command()
@opens_models
def revert(
    model: Model,
    patch: PatchPath,
    out: Folder,
    *,
    opening: Opening,
) -> None:
    """Write a plain checkpoint with the patch taken back, bit for bit the original weights."""
    lm = opening.model(model)
    Patch.load(patch).revert(lm.model)
    folder = export(lm, None, out)
    show({"checkpoint": str(folder)}, (), f"Checkpoint: {folder}")


@patch_app.command("export-adapter")
@opens_models
def export_adapter_(
    model: Model,
    patch: PatchPath,
    out: Annotated[Path, typer.Option(help="New folder for the adapter.")],
    *,
    opening: Opening,
) -> None:
    """Write a patch of linear layers as a SHiRA adapter, which PEFT opens."""
    lm = opening.model(model)
    found = export_adapter(lm, Patch.load(patch), out)
    show(
        {"adapter": str(out), **dataclasses.asdict(found)},
        (),
        f"{found.entries:,} weights of {found.tensors} matrices as SHiRA with r = {found.rank}, which adds "
        f"{found.padding:,} zeros. {found.rounded:,} sums round to another value than the patch's. Adapter: {out}",
    )


@patch_app.command()
def card(
    patch: PatchPath,
    out: Annotated[Path, typer.Option(help="New file, such as README.md.")],
    run: Annotated[Path | None, typer.Option(help="Run that made and measured the patch.")] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="Licence, as the hub names it.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the base, if the patch does not name it.")] = None,
) -> None:
    """Write a model card with the measured numbers of a run; what is missing is said."""
    refuse_existing(out)
    made = patch_card(patch, run, license_id=license_id, base_model=base_model)
    write_text(out, made.text)
    show({"card": str(out), "missing": made.missing}, (), "\n".join([*made.missing, f"Card: {out}"]))
