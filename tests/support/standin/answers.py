"""What real servers answered, as the form and the words of what the stand-in answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import unquote

from tests.contract.flows import Series
from tests.contract.recorded import Exchange, recorded, rows
from tests.support.standin.model import (
    JSON,
    Answer,
)
from tests.support.standin.routes import operations_at


def refusal(series: Series, like: str, *changes: tuple[str, str]) -> Answer:
    """What a real server answered to a request that was refused, with what differs in this one put
    in its place.

    `like` is a part of that exchange: its status, method, address and body, which of 1.3 and 2.0
    are the same for most.
    """
    text = json.dumps(_refused(series, like).body)
    for there, here in changes:
        text = text.replace(json.dumps(there)[1:-1], json.dumps(here)[1:-1])
    kept = {
        name: value
        for name, value in _refused(series, like).headers.items()
        if name != "content-type"
    }
    return Answer(_refused(series, like).status, json.loads(text) or None, kept)


@cache
def _refused(series: Series, like: str) -> Exchange:
    others: Series = "1.3" if series == "2.0" else "2.0"
    exchanges = (one for one in [*recorded(series), *recorded(others)] if one.status >= 400)
    return next(
        one
        for one in exchanges
        if like in f"{one.status} {one.method} {unquote(one.path)}\n{one.request_body}"
    )


def in_words(status: int, message: str) -> Answer:
    """An error of which there's no record, in the form that all have."""
    return Answer(status, {**_refused("2.0", "/executions/unknown").body, "message": message})


@dataclass(slots=True)
class Form:
    """How a real server answers to an operation that it does; without `keys`, with all there is."""

    status: int = 200
    content_type: str | None = JSON
    keys: set[str] = field(default_factory=set)

    def answer(self, value: Any) -> Answer:
        """What is to be told of `value`: an object, rows, or a page of rows."""
        if self.content_type is None:
            return Answer(self.status)
        if isinstance(value, dict) and "results" in value:
            return Answer(
                self.status, {**value, "results": [self._row(row) for row in value["results"]]}
            )
        shown = [self._row(row) for row in value] if isinstance(value, list) else self._row(value)
        return Answer(self.status, shown, content_type=self.content_type)

    def _row(self, whole: dict[str, Any]) -> dict[str, Any]:
        return (
            {key: value for key, value in whole.items() if key in self.keys} if self.keys else whole
        )


@cache
def forms(series: Series) -> Mapping[str, Form]:
    """How a real server of that series answers to each operation that was recorded."""
    found: dict[str, Form] = {}
    for one in recorded(series):
        match = operations_at(one.path.partition("?")[0], series).get(one.method)
        if one.status < 300 and match:
            form = found.setdefault(match[0], Form(one.status, one.headers.get("content-type")))
            listed = (
                rows(one.body)
                if isinstance(one.body, list) or "results" in one.body
                else [one.body]
            )
            form.keys.update(*listed)
    return found


@cache
def said_of_itself(series: Series) -> dict[str, Any]:
    return next(dict(one.body) for one in recorded(series) if one.path == "/api/v1/configs")
