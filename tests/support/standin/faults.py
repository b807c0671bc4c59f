"""What can go wrong with a request, and what the client then sees."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.standin.answers import in_words
from tests.support.standin.model import (
    Answer,
    Call,
)

KESTRA = object()
"""A fault's body in Kestra's own words."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with the next requests for an operation."""

    operation: str = "*"
    """create, search, get, kill, outputs, logs, configs, flow, new_flow, save_flow, validate; or
    "*"."""
    times: int | None = 1
    """How many requests; None for all until `clear`."""
    worked: bool = False
    """Whether the work is done all the same (a 504 after creating, for instance)."""
    delay: float = 0.0
    """Seconds, after the work if `worked`, else before it. Alone: a slow server."""
    status: int | None = None
    body: Any = KESTRA
    """What goes with the status: KESTRA, text, bytes, or what is to be sent as JSON."""
    hang: bool = False
    """Never answer."""
    reset: bool = False
    """Cut the connection."""
    disappeared: bool = False
    """Create, and answer 404 "Execution disappeared after create: <id>"."""
    share: float = 1.0
    """The probability that a request is hit."""
    when: Callable[[Call], bool] = lambda _: True
    """Which requests are meant."""
    hits: int = 0

    @property
    def only_slow(self) -> bool:
        return self.status is None and not (self.hang or self.reset or self.disappeared)

    def fits(self, operation: str, call: Call) -> bool:
        spent = self.times is not None and self.hits >= self.times
        return (
            not spent
            and self.operation in ("*", operation)
            and random.random() < self.share  # noqa: S311
            and self.when(call)
        )

    def answer(self, created: str | None) -> Answer:
        """What the client gets to see instead."""
        if self.disappeared:
            return in_words(404, f"Not Found: Execution disappeared after create: {created}")
        assert self.status is not None
        headers = {"Location": "/ui/login"} if 300 <= self.status < 400 else {}
        if self.status == 401:
            headers = {"WWW-Authenticate": "Basic"}
        body = (
            in_words(self.status, "Internal server error: made to fail").body
            if self.body is KESTRA
            else self.body
        )
        return Answer(self.status, body, headers)


class Faults:
    """The faults to come, taken in the order in which they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, operation: str = "*", **what: Any) -> Fault:
        """Let something go wrong; `what`: see `Fault`."""
        fault = Fault(operation=operation, **what)
        fault.worked = fault.worked or fault.disappeared
        self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Let one of them happen no more."""
        self._faults.remove(fault)

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self._faults.clear()

    def take(self, operation: str, call: Call) -> Fault | None:
        for fault in self._faults:
            if fault.fits(operation, call):
                fault.hits += 1
                return fault
        return None
