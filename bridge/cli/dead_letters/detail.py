"""One dead letter in full: why, its execution in Kestra, and its message."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from pydantic_core import from_json
from rich.cells import chop_cells
from rich.console import Console

from bridge.cli.dead_letters.output import as_text, dumps
from bridge.durations import format_span
from bridge.job.machine_use import use_in_headers
from bridge.job.message import ATTEMPT, DEAD_LETTER_HEADERS, MACHINE_COST, MACHINE_SECONDS, Message
from bridge.kestra import FailureReport
from bridge.kestra.logs import LogLine
from bridge.operate.dead_letters.letter import DeadLetter, Origin
from bridge.text import visible

BODY_LINES = 60
BODY_LENGTH = 6000
HEADER_LENGTH = 300
LABEL_WIDTH = 12
LOG_LINES = 20
"""Lines of one log entry."""

SHOWN_ELSEWHERE = frozenset(
    {
        *DEAD_LETTER_HEADERS,
        ATTEMPT,
        MACHINE_SECONDS,
        MACHINE_COST,
        "x-delivery-count",
        "x-acquired-count",
    }
)
"""Headers whose content is in other rows, or that reading changes."""

NO_PROPERTIES = frozenset({"body", "headers", "exchange", "routing_key"})

_ORIGINS = {
    Origin.BROKER: "RabbitMQ itself",
    Origin.UNKNOWN: "somebody by hand, or another program",
}

Rows = Iterable[tuple[str, Iterable[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionReport:
    """Kestra's report on a letter's execution, or in `unknown_because` why there is none."""

    execution: str | None
    url: str | None = None
    failure: FailureReport | None = None
    unknown_because: str = ""

    @property
    def data(self) -> dict[str, Any] | None:
        """The report for programs."""
        if self.execution is None:
            return None
        data: dict[str, Any] = {"execution": self.execution, "url": self.url}
        if self.failure is None:
            return {**data, "unknown_because": self.unknown_because}
        log = [
            {"at": line.at, "level": line.level, "message": line.message}
            for line in self.failure.log
        ]
        state = self.failure.execution.state.value
        return {**data, "state": state, "task": self.failure.task, "log": log}

    @property
    def rows(self) -> Rows:
        """The report for people."""
        if self.execution is None:
            yield "Execution", ["none: nothing was started"]
            return
        state = f"({self.unknown_because})"
        if self.failure:
            state = f"is {self.failure.execution.state.value} now"
        lines = [f"{self.execution} {state}"]
        if self.url:
            lines.append(self.url)
        yield "Execution", lines
        if self.failure and self.failure.task:
            yield "Failed task", [self.failure.task]
        if self.failure and self.failure.log:
            yield "Log", [line for entry in self.failure.log for line in _log_lines(entry)]


def full_data(letter: DeadLetter, message: Message, report: ExecutionReport) -> dict[str, Any]:
    """A letter with its message and Kestra's report on its execution, for programs."""
    return {
        **letter.data,
        **use_in_headers(message.headers).data,
        "kestra": report.data,
        "properties": dict(_properties(message)),
        "headers": dict(message.headers),
        **_body_data(message.body),
    }


def print_full(
    letter: DeadLetter, message: Message, now: datetime, report: ExecutionReport
) -> None:
    """Print a letter for a person: why, Kestra's report, and the message."""
    width = None
    if sys.stdout.isatty():
        width = max(20, Console().width - LABEL_WIDTH - 2)
    age = letter.age(now)
    old = "" if age is None else f", {format_span(age)} old"
    print(f"{letter.name} (dead letter of {letter.queue}{old})")
    for label, lines in (*_why_rows(letter), *report.rows, *_message_rows(message)):
        shown = label
        for line in _folded(lines, width):
            print(f"  {shown:{LABEL_WIDTH}}{line}".rstrip())
            shown = ""


def _why_rows(letter: DeadLetter) -> Rows:
    why = letter.reason
    if letter.error:
        why += f": {letter.error}"
    yield "Why", [why]
    if letter.origin in _ORIGINS:
        yield "By", [_ORIGINS[letter.origin]]
    if not letter.named:
        name = f"none; here it goes by {letter.name}, and a replay would make that its id"
        yield "Job id", [name]
    if letter.flow:
        yield "Flow", [str(letter.flow)]
    else:
        yield "Flow", ["none in the body: the lane's default flow, which isn't set here"]
    yield "Attempt", [str(letter.attempt)]


def _message_rows(message: Message) -> Rows:
    yield "Properties", [f"{name}: {_in_words(value)}" for name, value in _properties(message)]
    headers = [
        _bounded(f"{visible(name)}: {_in_words(value)}", HEADER_LENGTH)
        for name, value in message.headers.items()
        if name not in SHOWN_ELSEWHERE
    ]
    if headers:
        yield "Headers", headers
    if used := use_in_headers(message.headers).words:
        yield "Machines", [visible(used)]
    size = len(message.body)
    yield "Body", ["1 byte" if size == 1 else f"{size} bytes", *_body_lines(message.body)]


def _properties(message: Message) -> Iterator[tuple[str, Any]]:
    """The properties that are set."""
    for field in fields(message):
        value = getattr(message, field.name)
        if field.name in NO_PROPERTIES or value is None:
            continue
        if isinstance(value, datetime):
            value = value.isoformat()
        yield field.name, value


def _in_words(value: Any) -> str:
    """A header's or property's value on one line: texts and times as they are, the rest as JSON."""
    if isinstance(value, (bytes, bytearray)):
        return visible(bytes(value).decode("utf-8", "backslashreplace"))
    if isinstance(value, datetime):
        return visible(as_text(value))
    if isinstance(value, str):
        return visible(value)
    return visible(dumps(value))


def _body_data(body: bytes) -> dict[str, Any]:
    try:
        return {"body": from_json(body, allow_inf_nan=False)}
    except ValueError:
        return {"body": None, "body_base64": base64.b64encode(body).decode()}


def _body_lines(body: bytes) -> Iterator[str]:
    """A body that is safe for a terminal: JSON is indented, binary data is escaped, and the length
    is bounded.
    """
    shown = _indented(body) or body[: BODY_LENGTH + 1].decode("utf-8", "backslashreplace")
    lines = shown[:BODY_LENGTH].split("\n")
    yield from map(visible, lines[:BODY_LINES])
    if len(shown) > BODY_LENGTH or len(lines) > BODY_LINES:
        yield "… and more, which --json shows"


def _indented(body: bytes) -> str | None:
    try:
        return json.dumps(from_json(body, allow_inf_nan=False), indent=2, ensure_ascii=False)
    except ValueError:
        return None


def _log_lines(entry: LogLine) -> Iterator[str]:
    first, *others = entry.message.split("\n")
    yield _bounded(visible(f"{entry.at} {entry.level} {first}"), HEADER_LENGTH)
    for other in others[:LOG_LINES]:
        yield _bounded(visible(f"  {other}"), HEADER_LENGTH)


def _bounded(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return text[: length - 1] + "…"


def _folded(lines: Iterable[str], width: int | None) -> Iterator[str]:
    """Lines of at most that many columns, except links, which only work in one piece."""
    for line in lines:
        if width is None or not line or line.startswith(("http://", "https://")):
            yield line
        else:
            yield from chop_cells(line, width)
