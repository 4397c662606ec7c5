"""The command line: each command is a thin call of one public function."""

from __future__ import annotations

import sys

import click
from rich.console import Console

from ballast.cli.app import app
from ballast.cli.output import state
from ballast.errors import BallastError, UsageError
from ballast.progress import shown_on

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad usage."""
    console = Console(stderr=True)
    try:
        with shown_on(console):
            code = app(args=arguments, prog_name="ballast", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        console.print("Stopped. The same command continues where it stopped.")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BallastError as error:
        if state.debug:
            raise
        console.print(f"[bold red]Error:[/] {_escaped(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
