"""Standard input, output and error, as whoever started us has left them: closed, full, or not for
all characters.
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
    """Make the three streams such that whatever is written to them can be.

    One that is closed is taken for /dev/null, before a socket gets its number. What a stream's
    encoding lacks is escaped as in JSON, since it may be a part of some.
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
    """Write a line to standard error, if that can be."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def flush() -> None:
    """Write what standard output still holds.

    Raises:
        BrokenPipeError: whoever read it has gone.
        BridgeError: it can't be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop(sys.stdout)
        raise unwritable(error) from error


def unwritable(error: OSError) -> BridgeError:
    """The error that standard output can't take what is written to it."""
    return BridgeError(f"can't write to standard output: {error.strerror}")


def drop(stream: object) -> None:
    """Let nothing more be written there: Python would try it once more at its exit, and
    complain.
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
    r"""Characters as `\u1234`, those beyond as two of these, as JSON has them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    escaped = "".join(
        f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)
    )
    return escaped, error.end
