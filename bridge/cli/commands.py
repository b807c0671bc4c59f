"""The application `kestra-bridge` with all its commands."""

from __future__ import annotations

from typing import Annotated, ClassVar

import typer

from bridge import __version__
from bridge.cli import streams
from bridge.cli.common import reported
from bridge.cli.lazy import LazyGroup
from bridge.telemetry import log


class AllCommands(LazyGroup):
    """The commands, in the order of the help."""

    modules: ClassVar = {
        "doctor": "bridge.cli.doctor",
        "run": "bridge.cli.run",
        "schema": "bridge.cli.schema",
        "status": "bridge.cli.status",
        "submit": "bridge.cli.submit",
        "dead-letters": "bridge.cli.dead_letters.commands",
        "flows": "bridge.cli.flows",
        "machine": "bridge.cli.machine",
    }


app = typer.Typer(
    name="kestra-bridge",
    cls=AllCommands,
    help="Run the jobs of a RabbitMQ priority queue as Kestra executions: one for each message, "
    "acked on success.",
    epilog="Settings are environment variables that begin with BRIDGE_, or lines of a .env file: "
    "see 'run --help'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kestra-bridge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command line. Every error of ours becomes one line and an exit code."""
    streams.prepare()
    log.configure(style="auto", level="info")
    with reported():
        app()
