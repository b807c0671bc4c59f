"""A dead letter as data: what its message says, and the message that puts its job back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic_core import from_json

from bridge.job.decode import MAX_BODY
from bridge.job.flow_name import FlowName
from bridge.job.machine_use import use_in_headers
from bridge.job.message import ATTEMPT, FIRST_ATTEMPT, Message
from bridge.job.settlement import Reason
from bridge.text import visible

BROKER_REASONS = ("delivery_limit", "expired", "maxlen", "rejected")
"""Why RabbitMQ itself gives a message up, by the names in its `x-death` header."""

UNROUTABLE = "unroutable"
"""The message was published to the lane's exchange with a routing key that leads to no queue."""

UNEXPLAINED = "unexplained"
REASONS = (*Reason, *BROKER_REASONS, UNROUTABLE, UNEXPLAINED)

_CHANGED_BY_READING = re.compile(r"x-(?:delivery|acquired)-count")
_EXECUTION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Origin(StrEnum):
    """Where a dead letter comes from."""

    BRIDGE = "bridge"
    BROKER = "rabbitmq"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """All facts about one dead letter, without its body.

    `job` is the message's id; without one it is made from the content, and `named` is false.
    `queue` is the lane whose dead letter it is, `own_queue` the lane that its header names. Letters
    of one (job, attempt) with the same body share one `key`.
    """

    job: str
    named: bool
    key: bytes
    queue: str
    own_queue: str | None
    origin: Origin
    reason: str
    error: str
    flow: FlowName | None
    attempt: int
    execution: str | None
    at: datetime | None
    priority: int | None
    size: int

    @property
    def name(self) -> str:
        """The job's id as a terminal can show it."""
        return visible(self.job)

    def age(self, now: datetime) -> timedelta | None:
        """The time since it became a dead letter, if it says when that was."""
        if self.at is None:
            return None
        return max(timedelta(), now - self.at)

    @property
    def data(self) -> dict[str, Any]:
        """The letter for programs."""
        return {
            "job": self.job,
            "queue": self.queue,
            "reason": self.reason,
            "error": self.error,
            "by": self.origin.value,
            "flow": str(self.flow) if self.flow else None,
            "attempt": self.attempt,
            "execution": self.execution,
            "at": self.at.isoformat() if self.at else None,
            "priority": self.priority,
            "bytes": self.size,
        }


def parse(message: Message, *, queue: str, default_flow: FlowName | None) -> DeadLetter:
    """The dead letter of a lane that a message is. Never fails: anybody can publish there."""
    headers = message.headers
    cause = _cause(message, queue)
    attempt = attempt_of(message)
    job = message.message_id or _made_name(message)
    return DeadLetter(
        job=job,
        named=bool(message.message_id),
        key=_key(queue, job, attempt, message.body),
        queue=queue,
        own_queue=_text(headers, "x-bridge-queue"),
        origin=cause.origin,
        reason=cause.reason,
        error=cause.error,
        flow=_flow(message.body) or default_flow,
        attempt=attempt,
        execution=_execution(headers),
        at=cause.at or _aware(message.timestamp),
        priority=message.priority,
        size=len(message.body),
    )


def key_of_copy(message: Message, *, queue: str) -> bytes:
    """The key of the letter from which `to_replay` made this message for a lane."""
    return _key(queue, message.message_id or "", attempt_of(message) - 1, message.body)


def attempt_of(message: Message) -> int:
    """The attempt number, from 1; 1 where the header has no sensible one."""
    value = message.headers.get(ATTEMPT)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    return 1


def to_replay(letter: DeadLetter, message: Message) -> Message:
    """The message that puts a dead letter's job back: its next attempt, with a fresh budget of
    attempts. What the job used of machines still counts.

    What the bridge keeps as headers stays headers: an `expiration` would be lost on the way and a
    `user_id` refused.
    """
    attempt = letter.attempt + 1
    used = use_in_headers(message.headers).headers
    headers = {ATTEMPT: attempt, FIRST_ATTEMPT: attempt, **used}
    return message.to_republish(headers, message_id=letter.job)


def _key(queue: str, job: str, attempt: int, body: bytes) -> bytes:
    """Tells one attempt of a job from any other, even where two publishers gave different jobs the
    same id.
    """
    identity = f"{queue}\n{attempt}\n{job}\n".encode("utf-8", "surrogateescape")
    return hashlib.sha256(identity + body).digest()[:16]


@dataclass(frozen=True, slots=True)
class _Cause:
    """How a message became a dead letter: the reason as a word, the error as a line."""

    origin: Origin
    reason: str
    error: str
    at: datetime | None = None


def _cause(message: Message, queue: str) -> _Cause:
    if message.exchange == queue:
        # The lane's own exchange found no queue for it; all others come through the exchange for
        # dead letters.
        key = visible(message.routing_key or "")
        error = (
            f"it was published to exchange {queue} with routing key '{key}', which led to no queue"
        )
        return _Cause(Origin.BROKER, UNROUTABLE, error)
    headers = message.headers
    reason = _text(headers, "x-bridge-reason")
    if reason:
        error = " ".join((_text(headers, "x-bridge-error") or "").split())
        at = _time(_text(headers, "x-bridge-at"))
        return _Cause(Origin.BRIDGE, visible(reason), visible(error), at)
    death = _death(headers, queue)
    if death is not None:
        reason = visible(str(death.get("reason")))
        error = f"RabbitMQ gave it up in {queue}: {reason.replace('_', ' ')}"
        time = death.get("time")
        at = _aware(time) if isinstance(time, datetime) else None
        return _Cause(Origin.BROKER, reason, error, at)
    error = "neither the bridge nor RabbitMQ says how it came here"
    return _Cause(Origin.UNKNOWN, UNEXPLAINED, error)


def _death(headers: Mapping[str, Any], queue: str) -> Mapping[str, Any] | None:
    """The `x-death` entry of a queue, if there is one."""
    deaths = headers.get("x-death")
    if not isinstance(deaths, list):
        return None
    for death in deaths:
        if isinstance(death, dict) and death.get("queue") == queue:
            return death
    return None


def _made_name(message: Message) -> str:
    """A name for a message without an id, the same whenever it is read: it is listed, replayed and
    discarded under this name.
    """
    headers = sorted(
        (name, repr(value))
        for name, value in message.headers.items()
        if not _CHANGED_BY_READING.fullmatch(name)
    )
    content = repr((headers, message.correlation_id, message.timestamp, message.priority))
    digest = hashlib.sha256(content.encode() + message.body).hexdigest()
    return f"unnamed-{digest[:16]}"


def _flow(body: bytes) -> FlowName | None:
    """The flow that a body names, if it can be read."""
    if len(body) > MAX_BODY:
        return None
    try:
        data = from_json(body)
        if isinstance(data, dict) and isinstance(data.get("flow"), str):
            return FlowName.parse(data["flow"])
    except ValueError:
        pass
    return None


def _text(headers: Mapping[str, Any], name: str) -> str | None:
    value = headers.get(name)
    if isinstance(value, str) and value:
        return value
    return None


def _execution(headers: Mapping[str, Any]) -> str | None:
    """The execution's id, if it can be one: it becomes part of a URL."""
    value = _text(headers, "x-bridge-execution")
    if value and _EXECUTION_ID.fullmatch(value):
        return value
    return None


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return _aware(datetime.fromisoformat(text))
    except ValueError:
        return None


def _aware(time: datetime | None) -> datetime | None:
    """A time with its zone, UTC where it names none."""
    if time is None or time.tzinfo:
        return time
    return time.replace(tzinfo=UTC)
