"""The command `ballast`: its options and its verbs."""

from __future__ import annotations

from typing import Annotated

import transformers
import typer

from ballast.cli.attack import attack
from ballast.cli.evaluate import compare, measure, report
from ballast.cli.locate import locate, methods, sets
from ballast.cli.output import state
from ballast.cli.overlap import overlap
from ballast.cli.patch import patch_app
from ballast.cli.prompts import prompts_app
from ballast.cli.study import study
from ballast.cli.tune import demo, finetune, harden, merge
from ballast.cli.validate import validate

app = typer.Typer(
    help="Find the weights that keep a language model safe; tune, patch and measure the model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON value for machines.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    state.json, state.debug = json, debug
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


VERBS = (
    measure,
    locate,
    methods,
    sets,
    overlap,
    study,
    validate,
    harden,
    finetune,
    merge,
    attack,
    compare,
    report,
    demo,
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(patch_app, name="patch")
app.add_typer(prompts_app, name="prompts")
