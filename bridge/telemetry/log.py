"""Logging: structured lines, one for each thing that a person would want to know, and never a
secret.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_CHATTY = ("aio_pika", "aiormq", "httpx", "httpcore", "asyncio")
"""Libraries that log what the bridge says itself, in its own words; they are heard at level debug
alone."""

_WORRIED = ("opentelemetry",)
"""Libraries that warn of each try that fails; that they gave up is said as an error."""

_SECRETS: list[str] = []
"""What is masked wherever it stands, the longest first: one secret may be a part of another."""

_SEARCHED_FROM = 8
"""Characters of a secret that is searched for. A shorter one is also a part of words, which would
be masked for it."""

_POSITIONS = (
    re.compile(r"([a-z][a-z0-9+.-]*://[^\s/?#@:]*:)\S*(?=@)", re.IGNORECASE),
    re.compile(r"(authorization\W+(?:b\W+)?(?:bearer|basic)\s+)[^\s'\"]+", re.IGNORECASE),
)
"""Where a text holds a secret, whatever that is: the password of a URL, and what a header shows to
a server."""

_SECRET_FIELDS = re.compile(r"(?:^|[_-])(?:password|token|authorization)$", re.IGNORECASE)


def configure(
    *, style: Literal["auto", "json", "console"], level: str, secrets: Iterable[str] = ()
) -> None:
    """Set up structlog, and the standard library's logging through it, for this process. Lines go
    to standard error.
    """
    _SECRETS.clear()
    hide(secrets)
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    debug = level == "debug"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _traceback_for_debug_only(debug=debug),
        _mask,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else _json
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.CRITICAL)
    for name in _WORRIED:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.ERROR)


def hide(secrets: Iterable[str]) -> None:
    """Mask these too from now on, such as a password that was changed while the process runs."""
    found = {*_SECRETS, *(secret for secret in secrets if len(secret) >= _SEARCHED_FROM)}
    _SECRETS[:] = sorted(found, key=len, reverse=True)


def masked(text: str) -> str:
    """The text without secrets, as a log line or an error message may show it."""
    for position in _POSITIONS:
        text = position.sub(r"\1***", text)
    for secret in _SECRETS:
        text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
    return text


_json = structlog.processors.JSONRenderer(sort_keys=False, default=repr)


def _traceback_for_debug_only(*, debug: bool) -> Processor:
    def shorten(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        info = event.pop("exc_info", None)
        error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
        if isinstance(error, BaseException):
            frames = traceback.extract_tb(error.__traceback__)
            where = (
                f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
            )
            event["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
            if debug:
                event["exception"] = "".join(traceback.format_exception(error))
        return event

    return shorten


def _mask(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {
        key: value if key.startswith("_") else _clean_field(key, value)
        for key, value in event.items()
    }


def _clean(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {key: _clean_field(key, item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
    text = masked(value if isinstance(value, str) else repr(value))
    # Lone surrogates stand for bytes that weren't UTF-8; a terminal and a file take none.
    return text.encode("utf-8", "backslashreplace").decode()


def _clean_field(name: Any, value: Any) -> Any:
    return "***" if isinstance(name, str) and _SECRET_FIELDS.search(name) else _clean(value)
