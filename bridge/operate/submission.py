"""Jobs to be submitted: read from options, JSON lines or CSV, and judged by the bridge's own rules.
Asks nobody else.

Everything is read and judged before anything is published, so that a fault in the last line of a
file changes nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from bridge import exact_json
from bridge.errors import InvalidMessage
from bridge.job.decode import BYTE_ORDER_MARK, MAX_BODY, decode
from bridge.job.flow_name import FlowName
from bridge.job.message import Message

Format = Literal["auto", "jsonl", "csv"]

MAX_ID_BYTES = 255
"""What fits into the property `message_id`; an id that is cut off would be another job's."""

MADE_ID = 32
"""Characters of an id that is made here."""

_FIELDS = ("id", "flow", "priority", "timeout", "inputs", "labels")
_COLUMNS = ("id", "flow", "priority", "timeout")
_MAPS = {"input": "inputs", "label": "labels"}
_ANY_FLOW = FlowName("the", "lane")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A job as somebody wrote it, not judged yet. `where` is its file and line, and empty for
    options.
    """

    where: str = ""
    id: Any = None
    priority: Any = None
    body: Mapping[str, Any] = field(default_factory=dict)

    def filled(self, *, flow: str | None, priority: int | None, timeout: float | None) -> Draft:
        """The same with these values where it has none of its own."""
        given = {"flow": flow, "timeout": timeout}
        body = {key: value for key, value in given.items() if value is not None} | dict(self.body)
        return replace(
            self, priority=priority if self.priority is None else self.priority, body=body
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job that the bridge will understand, as the message that asks for it."""

    id: str
    message: Message

    def sent(self, at: datetime, *, reply_to: str | None = None) -> Message:
        """The message with the time of its publishing, by which the bridge tells how long it waited
        in the queue.

        With `reply_to` it asks for the job's final result, which will carry the job's id as its
        correlation id.
        """
        message = replace(self.message, timestamp=at)
        return replace(message, reply_to=reply_to, correlation_id=self.id) if reply_to else message


def fields(pairs: Iterable[str], *, option: str) -> dict[str, str]:
    """The values of an option that is given as NAME=VALUE, any number of times.

    Raises:
        InvalidMessage: one has no `=`, or a name comes twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidMessage(f"{option} {_shown(pair)} is not NAME=VALUE")
        if name in found:
            raise InvalidMessage(f"{option} {_shown(name)} is given twice")
        found[name] = value
    return found


def json_object(text: str, *, option: str) -> dict[str, Any]:
    """The JSON object that an option holds.

    Raises:
        InvalidMessage: it is something else.
    """
    return _json_object(text.encode("utf-8", "surrogateescape"), where=option)


def read(data: bytes, *, name: str, style: Format = "auto") -> list[Draft]:
    """The jobs of a file, whose name is for error messages and, for `auto`, for guessing the
    format.

    Raises:
        InvalidMessage: the file isn't of that format; the text names the line, and the column where
        there is one.
    """
    content = data.removeprefix(BYTE_ORDER_MARK)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidMessage(f"{name}: it is in UTF-16: save it in UTF-8")
    if content.startswith(b"\x1f\x8b"):
        raise InvalidMessage(
            f"{name}: it is compressed (gzip): unpack it first, as by zcat FILE | … --file -"
        )
    chosen = _guess(content, name) if style == "auto" else style
    drafts = list(_read_csv(content, name) if chosen == "csv" else _read_json_lines(content, name))
    if not drafts:
        raise InvalidMessage(f"{name}: there is no job in it")
    return drafts


def random_id(_: Message) -> str:
    """An id for a job that has none, never the same one twice."""
    return uuid.uuid4().hex


class IdsByContent:
    """Ids for jobs that have none: the same jobs in the same file get the same ids, however often
    it is read.

    Jobs that are alike are told apart by their order, so they stay as many as they are.
    """

    def __init__(self) -> None:
        self._seen: Counter[bytes] = Counter()

    def __call__(self, message: Message) -> str:
        """An id for the job of this message."""
        content = hashlib.sha256(f"{message.priority}\n".encode() + message.body).digest()
        self._seen[content] += 1
        return hashlib.sha256(content + str(self._seen[content]).encode()).hexdigest()[:MADE_ID]


def judge(
    drafts: Sequence[Draft], *, max_priority: int, ids: Callable[[Message], str]
) -> list[Submission]:
    """The jobs as messages, in the same order; `ids` gives one to each job that has none.

    Raises:
        InvalidMessage: the bridge would refuse one of them, or two have the same id; the text says
        where it stands.
    """
    seen: dict[str, str] = {}
    submissions = []
    for draft in drafts:
        prefix = f"{draft.where}: " if draft.where else ""
        try:
            submission = _judge(draft, max_priority, ids)
        except InvalidMessage as error:
            raise InvalidMessage(f"{prefix}{error}") from error
        if submission.id in seen:
            raise InvalidMessage(
                f"{prefix}id {_shown(submission.id)} is there already, at {seen[submission.id]}"
            )
        seen[submission.id] = draft.where
        submissions.append(submission)
    return submissions


def _judge(draft: Draft, max_priority: int, ids: Callable[[Message], str]) -> Submission:
    unnamed = Message(
        body=_encode(draft.body),
        content_type="application/json",
        delivery_mode=2,
        priority=_priority(draft.priority, max_priority),
    )
    message = replace(unnamed, message_id=ids(unnamed) if draft.id is None else _id(draft.id))
    # Which flow the lane has is for the bridge to know: it need not stand in the settings of who
    # submits.
    job = decode(message, default_flow=_ANY_FLOW, max_priority=max_priority)
    return Submission(id=job.id, message=message)


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return exact_json.dumps(dict(body), compact=True).encode()
    except ValueError as error:
        raise InvalidMessage(f"it can't be written as JSON: {error}") from error


def _id(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidMessage(f"id {_shown(value)} is not a text of at least one character")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise InvalidMessage(f"id {_shown(value)} has more than {MAX_ID_BYTES} bytes")
    return value


def _priority(value: Any, highest: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
        raise InvalidMessage(f"priority {_shown(value)} is not a whole number from 0 to {highest}")
    return int(value)


def _guess(content: bytes, name: str) -> Format:
    ending = name.rpartition(".")[2].lower()
    if ending in ("csv", "jsonl", "ndjson", "json"):
        return "csv" if ending == "csv" else "jsonl"
    return "jsonl" if content.lstrip()[:1] in (b"{", b"[", b"") else "csv"


def _read_json_lines(content: bytes, name: str) -> Iterator[Draft]:
    # Only a line feed ends a line: a JSON text may hold the other characters that Python takes for
    # line ends.
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield _draft_of_object(_json_object(line, where=f"{name}:{number}"), f"{name}:{number}")


def _draft_of_object(data: dict[str, Any], where: str) -> Draft:
    for key in data:
        if key not in _FIELDS:
            raise InvalidMessage(f"{where}: field {_shown(key)} is none of {', '.join(_FIELDS)}")
    body = {
        key: value
        for key, value in data.items()
        if key not in ("id", "priority") and value is not None
    }
    return Draft(where=where, id=data.get("id"), priority=data.get("priority"), body=body)


def _json_object(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        data = exact_json.loads(line)
    except ValueError as error:
        raise InvalidMessage(f"{where}: not JSON: {str(error).replace('line 1 ', '')}") from error
    if not isinstance(data, dict):
        raise InvalidMessage(
            f'{where}: not a JSON object; each line is one, such as {{"flow": "namespace/id"}}'
        )
    return data


def _read_csv(content: bytes, name: str) -> Iterator[Draft]:
    rows = _csv_rows(content, name)
    first = next((row for row in rows if any(map(str.strip, row[1]))), None)
    if first is None:
        return
    number, header = first
    columns = _columns(header, f"{name}:{number}")
    for number, cells in rows:
        if any(cells):
            yield _draft_of_row(columns, cells, f"{name}:{number}")


def _csv_rows(content: bytes, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows with the numbers of the lines that they begin at."""
    csv.field_size_limit(MAX_BODY)
    reader = csv.reader(io.StringIO(_text(content, name), newline=""), strict=True)
    begin = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InvalidMessage(f"{name}:{begin}: not CSV: {error}") from error
        if row is None:
            return
        yield begin, row
        begin = reader.line_num + 1


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidMessage(
            f"{name}:{line}: not UTF-8: byte 0x{content[error.start]:02x}"
        ) from error


def _columns(header: Sequence[str], where: str) -> list[str]:
    columns: list[str] = []
    for number, cell in enumerate(header, 1):
        column = cell.strip()
        kind, dot, rest = column.partition(".")
        if column not in _COLUMNS and not (kind in _MAPS and dot and rest):
            allowed = ", ".join((*_COLUMNS, "input.NAME", "label.NAME"))
            raise InvalidMessage(
                f"{where}: column {number}, {_shown(column)}, is none of {allowed}"
            )
        if column in columns:
            raise InvalidMessage(f"{where}: column {number}, {_shown(column)}, is there twice")
        columns.append(column)
    return columns


def _draft_of_row(columns: Sequence[str], cells: Sequence[str], where: str) -> Draft:
    """An empty cell says nothing, as if the column weren't there."""
    if len(cells) != len(columns):
        raise InvalidMessage(f"{where}: {len(cells)} columns, where the header has {len(columns)}")
    draft: dict[str, Any] = {"inputs": {}, "labels": {}}
    for column, cell in zip(columns, cells, strict=True):
        if not cell:
            continue
        kind, dot, name = column.partition(".")
        if dot:
            draft[_MAPS[kind]][name] = cell
        else:
            draft[column] = _cell(column, cell, where)
    body = {key: value for key, value in draft.items() if key not in ("id", "priority") and value}
    return Draft(where=where, id=draft.get("id"), priority=draft.get("priority"), body=body)


def _cell(column: str, cell: str, where: str) -> str | int | float:
    if column == "priority":
        if not re.fullmatch(r"[0-9]{1,9}", cell.strip()):
            raise InvalidMessage(f"{where}: column priority: {_shown(cell)} is not a whole number")
        return int(cell)
    if column == "timeout":
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", cell.strip()) or not float(cell):
            raise InvalidMessage(
                f"{where}: column timeout: {_shown(cell)} is not a number of seconds above 0"
            )
        return float(cell)
    return cell


def _shown(value: object) -> str:
    """A value as an error message can show it, on one line and not too long."""
    text = ascii(value) if isinstance(value, str) else exact_json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]}…{text[-1]}"
