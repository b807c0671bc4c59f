"""What all commands share: settings, logging, and errors as one line with an exit code.

0 done, 1 failed, 2 wrong usage or settings.
"""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, NoReturn

import structlog
import typer

from bridge import settings
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

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")
]


def finite(parameter: typer.CallbackParam, value: float | None) -> float | None:
    """The time that an option or an argument gives. Older releases of typer take nan for one
    within any bounds.

    Raises:
        SettingsError: it is no number, or without end.
    """
    if value is None or math.isfinite(value):
        return value
    name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
    raise SettingsError(f"{name}: not a number of seconds")


seconds = partial(typer.Option, metavar="SECONDS", callback=finite)
"""An option that takes a time."""


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
        _fail(_system_error(error), FAILED)
    except Signalled as ended:
        _fail(f"ended by {ended.name}", ended.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (people are promised one line, whatever happens)
        structlog.get_logger().debug("failed", exc_info=error)
        _fail(
            f"an error that the bridge did not expect, {type(error).__name__}: {error}; "
            "BRIDGE_LOG_LEVEL=debug shows where, please report it",
            FAILED,
        )


@contextmanager
def _flushed() -> Iterator[None]:
    """Write out the output at the end, also if the command ends the process."""
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


def _system_error(error: OSError) -> str:
    """What the operating system refused, and for which file."""
    if error.errno in _UNWRITABLE and error.filename is None:
        streams.drop(sys.stdout)
        return str(streams.unwritable(error))
    reason = error.strerror or str(error)
    if error.filename is None:
        return reason
    return f"{error.filename}: {reason}"


def load(section: type[settings.Section], *, json_logs: bool = False) -> settings.Section:
    """The settings that a command needs. Sets up logging as they say.

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
