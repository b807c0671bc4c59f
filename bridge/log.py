"""Logging: structured lines, one for each thing that a person would want to know, and never a secret."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_CHATTY = ("aio_pika", "aiormq", "httpx", "httpcore", "asyncio")
"""Libraries that log what the bridge says itself, in its own words; they are heard at level debug alone."""

_WORRIED = ("opentelemetry",)
"""Libraries that warn of each try that fails; that they gave up is said as an error."""

_SECRETS: list[str] = []
"""What is masked, the longest first: one secret may be a part of another."""


def configure(*, style: Literal["auto", "json", "console"], level: str, secrets: Iterable[str] = ()) -> None:
    """Set up structlog, and the standard library's logging through it, for this process. Lines go to standard error."""
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
    renderer: Processor = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else _json
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
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
    _SECRETS[:] = sorted({*_SECRETS, *secrets} - {""}, key=len, reverse=True)


_json = structlog.processors.JSONRenderer(sort_keys=False, default=repr)


def _traceback_for_debug_only(*, debug: bool) -> Processor:
    def shorten(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        info = event.pop("exc_info", None)
        error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
        if isinstance(error, BaseException):
            frames = traceback.extract_tb(error.__traceback__)
            where = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
            event["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
            if debug:
                event["exception"] = "".join(traceback.format_exception(error))
        return event

    return shorten


def _mask(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {key: value if key.startswith("_") else _clean(value) for key, value in event.items()}


def _clean(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case dict():
            return {key: _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
    text = value if isinstance(value, str) else repr(value)
    for secret in _SECRETS:
        text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
    # Lone surrogates stand for bytes that weren't UTF-8; a terminal and a file take none.
    return text.encode("utf-8", "backslashreplace").decode()
