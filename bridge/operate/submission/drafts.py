"""A job as somebody wrote it, and the parts of it that come from options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bridge import exact_json
from bridge.errors import InvalidMessage
from bridge.text import printable

SHOWN_AT_MOST = 60
"""Characters of a value in an error message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A job that has not been judged yet. `where` is its file and line; empty for options."""

    where: str = ""
    id: Any = None
    priority: Any = None
    body: Mapping[str, Any] = field(default_factory=dict)

    def filled(self, *, flow: str | None, priority: int | None, timeout: float | None) -> Draft:
        """The draft with these values in place of those that it lacks."""
        body: dict[str, Any] = {}
        if flow is not None:
            body["flow"] = flow
        if timeout is not None:
            body["timeout"] = timeout
        body |= self.body
        if self.priority is not None:
            priority = self.priority
        return replace(self, priority=priority, body=body)


def fields(pairs: Iterable[str], *, option: str) -> dict[str, str]:
    """The values of a repeatable option that takes NAME=VALUE.

    Raises:
        InvalidMessage: one has no `=` or isn't UTF-8, or a name comes twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if printable(pair) != pair:
            raise InvalidMessage(f"{option} {shown(printable(name))} is not in UTF-8")
        if not equals or not name:
            raise InvalidMessage(f"{option} {shown(pair)} is not NAME=VALUE")
        if name in values:
            raise InvalidMessage(f"{option} {shown(name)} is given twice")
        values[name] = value
    return values


def json_object(text: str, *, option: str) -> dict[str, Any]:
    """The JSON object that an option holds.

    Raises:
        InvalidMessage: it is something else.
    """
    wanted = 'it holds inputs by their names, such as {"message": "hello"}'
    return parse_json_object(text.encode("utf-8", "surrogateescape"), where=option, wanted=wanted)


def parse_json_object(
    data: bytes,
    *,
    where: str,
    wanted: str = 'each line is one, such as {"flow": "namespace/id"}',
) -> dict[str, Any]:
    """The JSON object in a line of a file or in an option, which `where` names in errors. `wanted`
    is what they say of the object.

    Raises:
        InvalidMessage: it is something else.
    """
    try:
        parsed = exact_json.loads(data)
    except ValueError as error:
        raise InvalidMessage(f"{where}: not JSON: {str(error).replace('line 1 ', '')}") from error
    if not isinstance(parsed, dict):
        raise InvalidMessage(f"{where}: not a JSON object; {wanted}")
    return parsed


def shown(value: object) -> str:
    """A value as an error message shows it: on one line and not too long."""
    text = ascii(value) if isinstance(value, str) else exact_json.dumps(value)
    if len(text) <= SHOWN_AT_MOST:
        return text
    return f"{text[: SHOWN_AT_MOST - 4]}…{text[-1]}"
