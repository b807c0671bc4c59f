"""Standard input, output and error as the caller left them: closed, full, or unable to carry some
characters.
"""

from __future__ import annotations

import codecs
import os
import sys
from io import TextIOWrapper

from bridge.errors import BridgeError

_ESCAPED = "kestra-bridge.escaped"
_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


def prepare() -> None:
    """Make the three streams take whatever is written to them.

    A closed stream becomes /dev/null, before a socket gets its number. Characters that a stream's
    encoding lacks are escaped as in JSON, since they may be part of some.
    """
    codecs.register_error(_ESCAPED, _escaped)
    for number, (name, mode) in enumerate(_MODES.items()):
        if getattr(sys, name) is None:
            _open_nothing(number, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)


def tell(line: str) -> None:
    """Write a line to standard error, if possible."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def say(line: str) -> None:
    """Write a line of ours to standard error, if possible."""
    tell(f"kestra-bridge: {line}")


def flush() -> None:
    """Write out what standard output has buffered.

    Raises:
        BrokenPipeError: its reader has gone.
        BridgeError: it can't be written to.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop(sys.stdout)
        raise unwritable(error) from error


def unwritable(error: OSError) -> BridgeError:
    """The error to report when standard output can't be written to."""
    return BridgeError(f"can't write to standard output: {error.strerror}")


def drop(stream: object) -> None:
    """Send the rest of a stream to /dev/null: Python would try to write it once more at its exit,
    and complain.
    """
    fileno = getattr(stream, "fileno", None)
    if fileno is not None:
        _open_nothing(fileno(), os.O_WRONLY)


def _open_nothing(number: int, flags: int) -> None:
    opened = os.open(os.devnull, flags)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Characters as `\u1234`; those beyond U+FFFF as two of these, as in JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    escaped = "".join(
        f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)
    )
    return escaped, error.end
