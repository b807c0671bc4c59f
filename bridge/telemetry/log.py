"""Logging: structured lines about what a person would want to know, without secrets."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_QUIETED = ("aio_pika", "aiormq", "httpx", "httpcore", "asyncio")
"""Libraries that log what the bridge logs itself, in its own words; shown at level debug only."""

_QUIETED_WARNINGS = ("opentelemetry",)
"""Libraries that warn of each attempt that fails, and log an error once they give up; their
warnings are shown at level debug only."""

_SHORTEST_SECRET = 8
"""Characters. A shorter secret is also a part of ordinary words, which would be masked with it."""

_POSITIONS = (
    re.compile(r"([a-z][a-z0-9+.-]*://[^\s/?#@:]*:)\S*(?=@)", re.IGNORECASE),
    re.compile(r"(authorization\W+(?:b\W+)?(?:bearer|basic)\s+)[^\s'\"]+", re.IGNORECASE),
)
"""Places in a text that hold a secret, whatever its value: the password of a URL, and the
credentials in a header."""

_SECRET_FIELDS = re.compile(r"(?:^|[_-])(?:password|token|authorization)$", re.IGNORECASE)

_SECRETS: list[str] = []
"""The texts to mask, the longest first: one secret may be a part of another. They belong to the
process, as the configuration of logging does."""


def configure(
    *, style: Literal["auto", "json", "console"], level: str, secrets: Iterable[str] = ()
) -> None:
    """Set up structlog, and through it the standard library's logging, for this process. Lines go
    to standard error.
    """
    _SECRETS.clear()
    hide(secrets)
    debug = level == "debug"
    terminal = sys.stderr.isatty()
    renderer: Processor = structlog.processors.JSONRenderer(sort_keys=False, default=repr)
    if style == "console" or (style == "auto" and terminal):
        renderer = structlog.dev.ConsoleRenderer(colors=terminal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _shorten_error(with_traceback=debug),
        _mask,
    ]
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
    for name in _QUIETED:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.CRITICAL)
    for name in _QUIETED_WARNINGS:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.ERROR)


def hide(secrets: Iterable[str]) -> None:
    """Mask these too from now on, such as a password that was changed while the process runs."""
    long_enough = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
    _SECRETS[:] = sorted(long_enough.union(_SECRETS), key=len, reverse=True)


def masked(text: str) -> str:
    """The text without secrets, as a log line or an error message may show it."""
    for position in _POSITIONS:
        text = position.sub(r"\1***", text)
    for secret in _SECRETS:
        text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
    return text


def _shorten_error(*, with_traceback: bool) -> Processor:
    """A processor that tells an error in one line, and where it was raised."""

    def shorten(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        error = event.pop("exc_info", None)
        if error is True:
            error = sys.exc_info()[1]
        elif isinstance(error, tuple):
            error = error[1]
        if not isinstance(error, BaseException):
            return event
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        frames = traceback.extract_tb(error.__traceback__)
        if frames:
            text += f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})"
        event["error"] = text
        if with_traceback:
            event["exception"] = "".join(traceback.format_exception(error))
        return event

    return shorten


def _mask(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    masked_event: EventDict = {}
    for key, value in event.items():
        # structlog's own fields, which are taken out before a line is written.
        masked_event[key] = value if key.startswith("_") else _clean_field(key, value)
    return masked_event


def _clean_field(name: Any, value: Any) -> Any:
    if isinstance(name, str) and _SECRET_FIELDS.search(name):
        return "***"
    return _clean(value)


def _clean(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {key: _clean_field(key, item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case str():
            text = value
        case _:
            text = repr(value)
    # A lone surrogate stands for a byte that wasn't UTF-8; terminals and files take none.
    return masked(text).encode("utf-8", "backslashreplace").decode()
