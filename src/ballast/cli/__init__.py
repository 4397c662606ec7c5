"""The command line: each command is a thin call of one public function."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from ballast.cli.app import app
from ballast.cli.output import state
from ballast.errors import BallastError, UsageError
from ballast.progress import printable, shown_on

__all__ = ["app", "main"]

ANYWHERE = ("--json", "--debug")  # options of the whole call, accepted behind the verb too


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad usage, 130 stopped by the user."""
    console = Console(stderr=True)
    try:
        with shown_on(console):
            app(args=_options_first(sys.argv[1:] if arguments is None else arguments), prog_name="ballast")
    except BallastError as error:
        if state.debug:
            raise
        message = Text.assemble(("Error:", "bold red"), f" {printable(str(error))}")
        console.print(message, soft_wrap=True, highlight=False)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _options_first(arguments: list[str]) -> list[str]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front = [argument for argument in arguments[:end] if argument in ANYWHERE]
    rest = [argument for argument in arguments[:end] if argument not in ANYWHERE]
    return front + rest + arguments[end:]
