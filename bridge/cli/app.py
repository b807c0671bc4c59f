"""The commands' common ground: the application, errors as one line, and exit codes.

0 done, 1 failed, 2 wrong usage or settings.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import structlog
import typer

from bridge import __version__, settings
from bridge.cli import streams
from bridge.cli.signals import Signalled
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
from bridge.settings import environment
from bridge.telemetry import log

FAILED = 1
WRONG = 2
INTERRUPTED = 130

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
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
    help="Run the jobs of a RabbitMQ priority queue as Kestra executions: one for each message, "
    "acked on success.",
    epilog="Settings are environment variables that begin with BRIDGE_, or lines of a .env file: "
    "see 'run --help'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")
]


def main() -> None:
    """Run the command line. Every error of ours becomes one line and an exit code."""
    streams.prepare()
    log.configure(style="auto", level="info")
    with reported():
        app()


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors into one line on standard error and an exit code."""
    try:
        with _flushed():
            yield
    except BridgeError as error:
        structlog.get_logger().debug("failed", exc_info=error)
        _fail(str(error), WRONG if isinstance(error, _WRONG_SETTINGS) else FAILED)
    except BrokenPipeError:
        streams.drop(sys.stdout)
        sys.exit(FAILED)
    except OSError as error:
        _fail(_of_the_system(error), FAILED)
    except Signalled as ended:
        _fail(f"ended by {ended.name}", ended.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (people are promised one line, whatever happens)
        structlog.get_logger().debug("failed", exc_info=error)
        _fail(
            f"an error that the bridge did not expect, {type(error).__name__}: {error}; "
            "BRIDGE_LOG_LEVEL=debug shows "
            "where, please report it",
            FAILED,
        )


@contextmanager
def _flushed() -> Iterator[None]:
    """See to it that the output can be written, also that of a command which ends the process."""
    try:
        yield
    except SystemExit:
        streams.flush()
        raise
    streams.flush()


def _fail(text: str, code: int) -> NoReturn:
    streams.tell(_line(text))
    # What the command had printed by then may not have been written yet.
    try:
        streams.flush()
    except BrokenPipeError:
        streams.drop(sys.stdout)
    except BridgeError as error:
        streams.tell(_line(str(error)))
    sys.exit(code)


def _line(text: str) -> str:
    return f"kestra-bridge: {log.masked(' '.join(text.split()))}"


def _of_the_system(error: OSError) -> str:
    """What the operating system refused, and of what."""
    if error.errno in _UNWRITABLE and error.filename is None:
        streams.drop(sys.stdout)
        return str(streams.unwritable(error))
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def load(section: type[settings.Section], *, json_logs: bool = False) -> settings.Section:
    """The settings that a command needs, with logging set up by them.

    Raises:
        SettingsError: naming every setting that can't be used.
    """
    found = settings.load(section)
    log.configure(
        style="json" if json_logs else found.log_format,
        level=found.log_level,
        secrets=found.secrets,
    )
    for warning in settings.unknown({*os.environ, *settings.in_env_file()}, section):
        structlog.get_logger().warning(warning)
    if isinstance(found, settings.KestraSettings):
        environment.check(os.environ)
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
