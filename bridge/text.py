"""Text that may hold anything, made fit for UTF-8, for a terminal or for AMQP."""

from __future__ import annotations

from typing import Any


def printable(text: str) -> str:
    r"""The text as UTF-8 can carry it: a byte that wasn't UTF-8 becomes `\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def visible(text: str) -> str:
    """The text on one line, with all escaped that a terminal would obey or not show."""
    shown = []
    for character in printable(text):
        if character.isprintable():
            shown.append(character)
        else:
            shown.append(ascii(character)[1:-1])
    return "".join(shown)


def short(text: str) -> str:
    """The text as UTF-8 can carry it, cut to the 255 bytes of a short string of AMQP."""
    return printable(text).encode()[:255].decode("utf-8", "ignore")


def encodable(value: Any) -> Any:
    """A header value that can be published again: `printable` is applied to each text in it."""
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
