"""JSON whose numbers keep their text: `1E5`, `1.10` and forty digits are written as they came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Self

from pydantic_core import from_json


class Real(float):
    """A number with a fraction or an exponent, and its text."""

    text: str

    def __new__(cls, text: str) -> Self:
        """The number of a JSON text."""
        self = super().__new__(cls, text)
        self.text = text
        return self


class Whole(int):
    """A whole number, and its text: `-0` is not `0`."""

    text: str

    def __new__(cls, text: str) -> Self:
        """The number of a JSON text."""
        self = super().__new__(cls, text)
        self.text = text
        return self


def loads(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.
    """
    # Stricter than the standard library, and bounded in depth.
    from_json(data, allow_inf_nan=False)
    return json.loads(data.decode(), parse_float=Real, parse_int=Whole)


def dumps(value: Any, *, compact: bool = False) -> str:
    """The value as a JSON text, with numbers as they were read.

    Raises:
        ValueError: it holds a number that JSON has no text for.
    """
    comma, colon = ", ", ": "
    if compact:
        comma, colon = ",", ":"
    match value:
        case Real() | Whole():
            return value.text
        case dict():
            pairs = (
                f"{_plain(str(key))}{colon}{dumps(item, compact=compact)}"
                for key, item in value.items()
            )
            return f"{{{comma.join(pairs)}}}"
        case list() | tuple():
            return f"[{comma.join(dumps(item, compact=compact) for item in value)}]"
        case _:
            return _plain(value)


def texts(value: Any) -> Iterator[str]:
    """Each string in a JSON value, names included."""
    match value:
        case str():
            yield value
        case dict():
            for key, item in value.items():
                yield key
                yield from texts(item)
        case list():
            for item in value:
                yield from texts(item)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
