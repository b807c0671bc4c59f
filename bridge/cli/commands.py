"""The application `kestra-bridge` with all its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from bridge import __version__
from bridge.cli import dead_letters, doctor, flows, machine, run, schema, status, streams, submit
from bridge.cli.common import reported
from bridge.telemetry import log

app = typer.Typer(
    name="kestra-bridge",
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


for module in (doctor, run, schema, status, submit):
    app.add_typer(module.app)
app.add_typer(
    dead_letters.app,
    name="dead-letters",
    short_help="Look at dead letters, replay or discard them.",
)
app.add_typer(flows.app, name="flows", short_help="Deploy and validate Kestra flows.")
app.add_typer(
    machine.app, name="machine", short_help="Create, use and destroy virtual machines for jobs."
)


def main() -> None:
    """Run the command line. Every error of ours becomes one line and an exit code."""
    streams.prepare()
    log.configure(style="auto", level="info")
    with reported():
        app()
