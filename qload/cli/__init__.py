"""The command `qload`: one file for each of its commands, none of which imports torch before it runs."""

import importlib
from collections.abc import Sequence

import click

from qload.errors import QloadError

_COMMANDS = {
    "methods": "qload.cli.methods",
    "run": "qload.cli.run",
    "validate": "qload.cli.validate",
}
FAILED = 2
"""Exit status of a command that could not do its work."""


class _CommandFailed(click.ClickException):
    exit_code = FAILED


class _Commands(click.Group):
    """Imports a command's module when it is asked for, and turns qload's errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except QloadError as error:
            raise _CommandFailed(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qload-torch")
def cli() -> None:
    """Load quantized checkpoints into PyTorch, and find what is wrong with them first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli(arguments, prog_name="qload")
