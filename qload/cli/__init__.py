"""The command `qload`: one file for each of its commands, none of which imports torch before it runs."""

import errno
import importlib
import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from qload.cli.shared import print_findings
from qload.errors import CheckpointError, QloadError, one_line
from qload.findings import Finding

_COMMANDS = {
    "explain": "qload.cli.explain",
    "methods": "qload.cli.methods",
    "plan": "qload.cli.plan",
    "rules": "qload.cli.rules",
    "run": "qload.cli.run",
    "schema": "qload.cli.schema",
    "validate": "qload.cli.validate",
}
FAILED = 2
"""Exit status of a command that could not do its work."""


class _CommandFailed(click.ClickException):
    exit_code = FAILED


class _Commands(click.Group):
    """Imports a command's module when it is asked for, and turns errors into one line each."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name]).command
        return command

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Settle whether to use colours, whatever the output is: no-color.org, force-color.org."""
        ctx = super().make_context(*arguments, **options)
        ctx.color = False if os.environ.get("NO_COLOR") else True if os.environ.get("FORCE_COLOR") else None
        return ctx

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    """Say in one line what went wrong, after the findings of a checkpoint, one line each."""
    if isinstance(error, CheckpointError):
        print_findings((finding for finding in error.findings if isinstance(finding, Finding)), err=True)
        raise _CommandFailed(one_line(f"{error.where}: {error.count}")) from error
    if isinstance(error, QloadError):
        raise _CommandFailed(str(error)) from error
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # Whoever reads the output has had enough of it; click leaves without a word.
        raise error
    raise _CommandFailed(_describe_defect(error)) from error


def _describe_defect(error: Exception) -> str:
    """An error that nobody meant to raise, and where it comes from, for whoever is told of it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno} in {last.name}"
    return one_line(f"unexpected {type(error).__name__}: {error} ({place}); report this as a defect of qload")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qload-torch")
def cli() -> None:
    """Load quantized checkpoints into PyTorch, and find what is wrong with them first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli(arguments, prog_name="qload")
