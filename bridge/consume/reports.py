"""What is told on the reply exchange, as messages. No I/O.

A reply tells of one execution's end, whether Kestra's notifier flow or the reporter publishes it.
The reporter also publishes what only replicas understand, under routing keys that begin with
`bridge.`: signs of life, and lists of what has not ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from pydantic_core import from_json

from bridge.job.execution import Execution, State
from bridge.job.message import Message

REPORTER = "reporter"
NOTIFIER = "notifier"
SIGN_KEY = "bridge.reporter"
LIST_KEY = "bridge.unfinished"

IDS_IN_A_MESSAGE = 2000
"""Ids in one message of a list, about 50 KB."""

MOST_PARTS = 10_000

TRANSIENT = 1
"""The delivery mode of what is of no use after a restart of the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An execution's end. `state` is None when the execution is gone from Kestra.

    `by` is who told it.
    """

    execution_id: str
    state: State | None
    ended: datetime | None = None
    by: str = NOTIFIER


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A sign of life of a reporter, whose last answered question was `asked` seconds ago."""

    reporter: str
    asked: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPart:
    """A part of a list of the executions that have not ended.

    The list was `seconds` old when its last part was published.
    """

    reporter: str
    list_id: str
    part: int
    parts: int
    seconds: float
    unfinished: frozenset[str]


Report = Completion | Sign | ListPart


def end_reply(execution: Execution) -> tuple[str, Message]:
    """The routing key and the message that tell of an execution's end."""
    flow = execution.flow
    body = {
        "executionId": execution.id,
        "state": execution.state.value,
        "namespace": flow.namespace,
        "flowId": flow.id,
        "endedAt": execution.ended.isoformat() if execution.ended else None,
        "by": REPORTER,
    }
    key = f"{execution.state.value}.{flow.namespace}.{flow.id}"
    return key, _message("kestra.execution.ended", body)


def sign(reporter: str, *, asked: float) -> Message:
    """The message that is a reporter's sign of life."""
    body = {"by": REPORTER, "reporter": reporter, "asked": round(asked, 3)}
    return _message(SIGN_KEY, body)


def list_parts(reporter: str, ids: Sequence[str], *, seconds: float) -> Iterator[Message]:
    """The messages that tell which executions have not ended; at least one."""
    list_id = uuid4().hex
    starts = range(0, max(len(ids), 1), IDS_IN_A_MESSAGE)
    for part, start in enumerate(starts, 1):
        body = {
            "by": REPORTER,
            "reporter": reporter,
            "list": list_id,
            "part": part,
            "parts": len(starts),
            "seconds": round(seconds, 3),
            "unfinished": ids[start : start + IDS_IN_A_MESSAGE],
        }
        yield _message(LIST_KEY, body)


def parse(body: bytes) -> Report:
    """What a message of the reply exchange tells.

    Raises:
        ValueError: it is not JSON, or none of these messages.
    """
    data: Any = from_json(body)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    if "unfinished" in data:
        return _list_part(data)
    if "asked" in data:
        return Sign(reporter=_text(data, "reporter"), asked=_seconds(data, "asked"))
    by = NOTIFIER
    if data.get("by") == REPORTER:
        by = REPORTER
    return Completion(
        execution_id=_text(data, "executionId"),
        state=State(_text(data, "state")),
        ended=_moment(data.get("endedAt")),
        by=by,
    )


def _list_part(data: dict[str, Any]) -> ListPart:
    ids = data["unfinished"]
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        raise ValueError("no list of ids")
    parts = _number(data, "parts", MOST_PARTS)
    return ListPart(
        reporter=_text(data, "reporter"),
        list_id=_text(data, "list"),
        part=_number(data, "part", parts),
        parts=parts,
        seconds=_seconds(data, "seconds"),
        unfinished=frozenset(ids),
    )


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise ValueError(f"no {key}")
    return value


def _number(data: dict[str, Any], key: str, most: int) -> int:
    value = data.get(key)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"no {key}")
    return value


def _seconds(data: dict[str, Any], key: str) -> float:
    value = data.get(key)
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"no {key}")
    return float(value)


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None


def _message(kind: str, body: dict[str, Any]) -> Message:
    return Message(
        body=json.dumps(body).encode(),
        content_type="application/json",
        delivery_mode=TRANSIENT,
        message_type=kind,
    )
