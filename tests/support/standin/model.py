"""What the stand-in keeps: flows, executions, requests and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

TERMINAL = frozenset({"SUCCESS", "WARNING", "FAILED", "KILLED", "CANCELLED", "RETRIED", "SKIPPED"})


GOING = {
    "CREATED",
    "SUBMITTED",
    "QUEUED",
    "RUNNING",
    "RESTARTED",
    "RETRYING",
    "PAUSED",
    "BREAKPOINT",
    "KILLING",
}


LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR")


LONGEST_REQUEST_LINE = 4096


RETRIED_AFTER = 0.02
"""Kestra 2.0 tells FAILED and, so many seconds later, RETRIED of an execution whose flow is retried
anew."""


HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


TRUNCATED = b'{"id": "4n5ruBCMlTeYTGni73rtlW", "state": {"curr'


EMPTY = b""


JSON = "application/json"


Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Ends:
    """How executions of a flow end. With `after=None` they wait for `Standin.end`.

    With `retries`, so many executions first end FAILED and then RETRIED, each followed by a new one
    (a flow's retry with CREATE_NEW_EXECUTION). With `kill_sticks`, a kill leads to KILLING and no
    further. Without `starts`, they stay CREATED until `Standin.begin`, as with a Kestra whose
    executor is down.
    """

    state: str = "SUCCESS"
    after: float | None = 0.0
    outputs: Mapping[str, Any] | None = None
    error: str = "it went wrong"
    retries: int = 0
    kill_sticks: bool = False
    starts: bool = True


AT_ONCE = Ends()
"""Executions succeed at once."""


@dataclass(slots=True)
class Run:
    """One execution."""

    id: str
    namespace: str
    flow: str
    labels: dict[str, str]
    inputs: dict[str, Any]
    original_id: str
    task: str
    parent_id: str | None = None
    trigger: Mapping[str, Any] | None = None
    ends: Ends = field(default_factory=Ends)
    histories: list[tuple[str, datetime]] = field(default_factory=list)
    outputs: Mapping[str, Any] | None = None
    kills: list[datetime] = field(default_factory=list)
    """When a kill was asked for, with effect or without."""
    timer: asyncio.TimerHandle | None = None
    overdue: bool = False
    """Whether its time came while nothing was run."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """The trace context that came with the create call."""

    @property
    def state(self) -> str:
        return self.histories[-1][0]

    @property
    def started(self) -> datetime:
        return self.histories[0][1]

    @property
    def ended(self) -> datetime | None:
        return self.histories[-1][1] if self.state in TERMINAL else None

    @property
    def attempt(self) -> tuple[str, str]:
        return self.labels.get("bridgeJob", ""), self.labels.get("bridgeAttempt", "")


Behaviour = Ends | Callable[[Run], Ends]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A flow: how its executions end, and which inputs it takes by which type (None: any, as
    text)."""

    namespace: str
    id: str
    behaviour: Behaviour = AT_ONCE
    inputs: Mapping[str, str] | None = None
    required: frozenset[str] = frozenset()
    disabled: bool = False
    concurrency: Mapping[str, Any] | None = None
    source: str = ""
    task: str = "work"
    parts: Mapping[str, Any] = field(default_factory=dict)
    """What else its source says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request, read whole."""

    method: str
    url: str
    path: str
    query: Pairs
    headers: Mapping[str, str]
    body: bytes
    form: Mapping[str, str]

    def value(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.query if key == name), default)


class Answer(Exception):
    """A status and a body; raised by a handler where the answer is an error."""

    def __init__(
        self,
        status: int,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}
        self.content_type = content_type
