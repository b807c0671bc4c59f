"""Texts that may hold anything, made fit for UTF-8, for a terminal and for AMQP."""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    r"""Text that UTF-8 can carry: bytes that weren't UTF-8 become `\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def visible(text: str) -> str:
    """`printable` on one line: what a terminal would obey or not show is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in printable(text))


def short(text: str) -> str:
    """`printable`, cut to the 255 bytes that a short string may have."""
    return printable(text).encode()[:255].decode("utf-8", "ignore")


def encodable(value: Any) -> Any:
    """A header value as it can be published again, with `printable` applied all through it."""
    match value:
        case str():
            return printable(value)
        case dict():
            return {printable(key)[:128]: encodable(item) for key, item in value.items()}
        case list():
            return [encodable(item) for item in value]
        case bytes():
            return bytearray(value)
        case _:
            return value
