"""How dead letters look: a table or a line for each, and one of them in full."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import IO, Any

from pydantic_core import from_json
from rich.cells import chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.durations import format_span
from bridge.job.message import ATTEMPT, DEAD_LETTER_HEADERS, Message
from bridge.kestra import FailureReport
from bridge.kestra.logs import LogLine
from bridge.operate.dead_letters.letters import DeadLetter, Origin
from bridge.text import encodable, visible

ROWS_AT_MOST = 100
"""Rows of a table, where nobody says how many: a person reads no more."""

WIDE = 110
"""Columns of a terminal from which on flow and attempt fit beside the error."""

BODY_LINES = 60
BODY_LENGTH = 6000
HEADER_LENGTH = 300
SPOOLED = 1_000_000
LABEL_WIDTH = 12

LOG_LINES = 20
TOLD_ELSEWHERE = frozenset({*DEAD_LETTER_HEADERS, ATTEMPT, "x-delivery-count", "x-acquired-count"})
Rows = Iterable[tuple[str, Iterable[str]]]
Sink = Callable[[DeadLetter], None]


@dataclass(slots=True)
class Overview:
    """What a list says beside its rows."""

    by_reason: Counter[str] = field(default_factory=Counter)
    rows: list[DeadLetter] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many letters were listed."""
        return self.by_reason.total()


@contextmanager
def listing(
    *, as_json: bool, now: datetime, queues: int, limit: int | None
) -> Iterator[tuple[Sink, Overview]]:
    """Takes letters one by one and shows them at the end: whoever reads slowly must not keep them
    held.

    So many as there may be, few are in memory: for a terminal the rows that are shown, else a file
    that goes away.
    """
    overview = Overview()
    table = sys.stdout.isatty() and not as_json
    with tempfile.SpooledTemporaryFile(SPOOLED, "w+", encoding="utf-8") as lines:

        def take(letter: DeadLetter) -> None:
            overview.by_reason[letter.reason] += 1
            if table:
                overview.rows += [letter] if len(overview.rows) < (limit or ROWS_AT_MOST) else []
            else:
                lines.write(_line(letter, now, as_json=as_json) + "\n")

        yield take, overview
        if table:
            _print_table(overview, now, queues=queues)
        else:
            _copy(lines)


def _copy(lines: IO[str]) -> None:
    lines.seek(0)
    shutil.copyfileobj(lines, sys.stdout)
    sys.stdout.flush()


def _line(letter: DeadLetter, now: datetime, *, as_json: bool) -> str:
    if as_json:
        return dumps(letter.data)
    cells = (
        letter.flow,
        letter.attempt,
        _age(letter, now),
        letter.queue,
        letter.execution,
        letter.error,
    )
    return "\t".join((letter.name, letter.reason, *(str(cell or "-") for cell in cells)))


def _age(letter: DeadLetter, now: datetime) -> str:
    age = letter.age(now)
    return format_span(age) if age is not None else "-"


def counted(by_reason: Counter[str]) -> str:
    """How many of which reason, the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in by_reason.most_common())


def _print_table(overview: Overview, now: datetime, *, queues: int) -> None:
    if not overview.total:
        return
    console = Console()
    wide = console.width >= WIDE
    # The error takes what the others leave, on one line: to read all of it, there's `show`.
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("Job", overflow="fold", max_width=36 if wide else 24)
    for heading in ("Queue",) if queues > 1 else ():
        table.add_column(heading, overflow="fold", max_width=24 if wide else 12)
    table.add_column("Reason", no_wrap=True)
    if wide:
        table.add_column("Flow", overflow="fold", max_width=30)
        table.add_column("Attempt", justify="right", no_wrap=True)
    table.add_column("Age", justify="right", no_wrap=True)
    table.add_column("Error", overflow="ellipsis", no_wrap=True, ratio=1, min_width=20)
    for letter in overview.rows:
        queue = (letter.queue,) if queues > 1 else ()
        more_cells = (str(letter.flow or "-"), str(letter.attempt)) if wide else ()
        table.add_row(
            *map(
                Text,
                (letter.name, *queue, letter.reason, *more_cells, _age(letter, now), letter.error),
            )
        )
    console.print(table)
    more = overview.total - len(overview.rows)
    cut = f"; the first {len(overview.rows)} are shown, --limit or --json show more" if more else ""
    plural = "" if overview.total == 1 else "s"
    console.print(
        Text(f"{overview.total} dead letter{plural}: {counted(overview.by_reason)}{cut}", "dim")
    )


NO_PROPERTIES = frozenset({"body", "headers", "exchange", "routing_key"})


def full_data(letter: DeadLetter, message: Message, told: Told) -> dict[str, Any]:
    """A letter with its message and what Kestra knows of its execution, for programs."""
    return {
        **letter.data,
        "kestra": told.data,
        "properties": dict(_properties(message)),
        "headers": dict(message.headers),
        **_body_data(message.body),
    }


def _in_words(value: Any) -> str:
    """A header's or property's value on one line: texts and times as they are, the rest as JSON."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value).decode("utf-8", "backslashreplace")
    return visible(
        value
        if isinstance(value, str)
        else _as_text(value)
        if isinstance(value, datetime)
        else dumps(value)
    )


def dumps(data: Any) -> str:
    """JSON on one line, whatever somebody put into headers."""
    return json.dumps(encodable(data), ensure_ascii=False, default=_as_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What Kestra tells of a letter's execution, or in `silence` why it doesn't."""

    execution: str | None
    url: str | None = None
    story: FailureReport | None = None
    silence: str = ""

    @property
    def data(self) -> dict[str, Any] | None:
        """It for programs."""
        if self.execution is None:
            return None
        found: dict[str, Any] = {"execution": self.execution, "url": self.url}
        if self.story is None:
            return {**found, "unknown_because": self.silence}
        log = [
            {"at": line.at, "level": line.level, "message": line.message} for line in self.story.log
        ]
        return {
            **found,
            "state": self.story.execution.state.value,
            "task": self.story.task,
            "log": log,
        }

    @property
    def rows(self) -> Rows:
        """It for people."""
        if self.execution is None:
            yield "Execution", ["none: nothing was started"]
            return
        state = f"is {self.story.execution.state.value} now" if self.story else f"({self.silence})"
        yield "Execution", [f"{self.execution} {state}", *([self.url] if self.url else [])]
        if self.story and self.story.task:
            yield "Failed task", [self.story.task]
        if self.story and self.story.log:
            yield "Log", [line for entry in self.story.log for line in _log_lines(entry)]


def print_full(letter: DeadLetter, message: Message, now: datetime, told: Told) -> None:
    """Print a letter for a person: why, what Kestra says of it, and the message."""
    width = Console().width - LABEL_WIDTH - 2 if sys.stdout.isatty() else None
    age = letter.age(now)
    print(
        f"{letter.name} (dead letter of {letter.queue}"
        + (f", {format_span(age)} old)" if age is not None else ")")
    )
    for label, lines in (*_why_rows(letter), *told.rows, *_message_rows(message)):
        for number, line in enumerate(_folded(lines, width)):
            print(f"  {'' if number else label:{LABEL_WIDTH}}{line}".rstrip())


def _why_rows(letter: DeadLetter) -> Rows:
    yield "Why", [f"{letter.reason}: {letter.error}" if letter.error else letter.reason]
    if letter.origin is not Origin.BRIDGE:
        yield (
            "By",
            [
                "RabbitMQ itself"
                if letter.origin is Origin.BROKER
                else "somebody by hand, or another program"
            ],
        )
    if not letter.named:
        yield (
            "Job id",
            [f"none; here it goes by {letter.name}, and a replay would make that its id"],
        )
    yield (
        "Flow",
        [
            str(letter.flow)
            if letter.flow
            else "none in the body: the lane's default flow, which isn't set here"
        ],
    )
    yield "Attempt", [str(letter.attempt)]


def _message_rows(message: Message) -> Rows:
    yield "Properties", [f"{name}: {_in_words(value)}" for name, value in _properties(message)]
    headers = [(key, value) for key, value in message.headers.items() if key not in TOLD_ELSEWHERE]
    if headers:
        yield (
            "Headers",
            [
                _bounded(f"{visible(key)}: {_in_words(value)}", HEADER_LENGTH)
                for key, value in headers
            ],
        )
    size = len(message.body)
    yield "Body", [f"{size} byte{'' if size == 1 else 's'}", *_body_lines(message.body)]


def _properties(message: Message) -> Iterator[tuple[str, Any]]:
    """The properties that are set."""
    for each in fields(message):
        value = getattr(message, each.name)
        if each.name not in NO_PROPERTIES and value is not None:
            yield each.name, value.isoformat() if isinstance(value, datetime) else value


def _body_data(body: bytes) -> dict[str, Any]:
    try:
        return {"body": from_json(body, allow_inf_nan=False)}
    except ValueError:
        return {"body": None, "body_base64": base64.b64encode(body).decode()}


def _body_lines(body: bytes) -> Iterator[str]:
    """A body that a terminal can bear: JSON is indented, what is no text is escaped, and all of it
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
    yield from (_bounded(visible(f"  {other}"), HEADER_LENGTH) for other in others[:LOG_LINES])


def _bounded(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _folded(lines: Iterable[str], width: int | None) -> Iterator[str]:
    """Lines that fit, except links, which only work in one piece."""
    for line in lines:
        whole = width is None or not line or line.startswith(("http://", "https://"))
        yield from [line] if whole else chop_cells(line, max(20, width or 0))


def _as_text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, (bytes, bytearray)) else str(value)
