"""The commands' common ground: the application, errors as one line, and exit codes.

0 done, 1 failed, 2 wrong usage or settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import structlog
import typer

from bridge import __version__, log, settings
from bridge.errors import (
    BridgeError,
    BrokerDenied,
    InvalidMessage,
    KestraDenied,
    MachineDenied,
    QueueMissing,
    SettingsError,
    TopologyMismatch,
)

FAILED = 1
WRONG = 2
_WRONG_SETTINGS = (
    SettingsError,
    BrokerDenied,
    KestraDenied,
    MachineDenied,
    TopologyMismatch,
    InvalidMessage,
    QueueMissing,
)

app = typer.Typer(
    name="kestra-bridge",
    help="Run the jobs of a RabbitMQ priority queue as Kestra executions: one for each message, acked on success.",
    epilog="Settings are environment variables that begin with BRIDGE_, or lines of a .env file: see 'run --help'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


def main() -> None:
    """Run the command line. Every error of ours becomes one line and an exit code."""
    log.configure(style="auto", level="info")
    with reported():
        app()


@contextmanager
def reported() -> Iterator[None]:
    """Turn our errors into one line on standard error and an exit code."""
    try:
        yield
    except BridgeError as error:
        structlog.get_logger().debug("failed", exc_info=error)
        print(f"kestra-bridge: {log.masked(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(WRONG if isinstance(error, _WRONG_SETTINGS) else FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`), and Python would complain of that once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        print(f"kestra-bridge: {error.strerror or error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)


def load(section: type[settings.Section], *, json_logs: bool = False) -> settings.Section:
    """The settings that a command needs, with logging set up by them.

    Raises:
        SettingsError: naming every setting that can't be used.
    """
    found = settings.load(section)
    log.configure(style="json" if json_logs else found.log_format, level=found.log_level, secrets=found.secrets)
    for warning in settings.unknown(os.environ):
        structlog.get_logger().warning(warning)
    return found


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
    """Options that hold for every command."""


from bridge.cli import dead_letters, doctor, flows, machine, run, schema, status, submit  # noqa: E402, F401  (each registers its commands on `app`)
