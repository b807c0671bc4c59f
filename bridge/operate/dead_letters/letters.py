"""Dead letters as data: what one says, which ones are meant, and the message that puts its job
back. Asks nobody.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from pydantic_core import from_json

from bridge.errors import InvalidMessage
from bridge.job.decode import MAX_BODY, decode
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName, allowed
from bridge.job.message import ATTEMPT, FIRST_ATTEMPT, Message
from bridge.job.settlement import Reason
from bridge.text import visible

BROKER_REASONS = ("delivery_limit", "expired", "maxlen", "rejected")
"""Why RabbitMQ itself gives a message up, by the names in its `x-death` header."""

UNROUTABLE = "unroutable"
"""It was published to the lane's exchange with a routing key that leads to no queue."""

UNEXPLAINED = "unexplained"
REASONS = (*Reason, *BROKER_REASONS, UNROUTABLE, UNEXPLAINED)

ANY_FLOW = FlowName("any", "flow")
_NOT_CONTENT = re.compile(r"x-(?:delivery|acquired)-count")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Origin(StrEnum):
    """Who put a message among the dead letters."""

    BRIDGE = "bridge"
    BROKER = "rabbitmq"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """What there is to know of one dead letter, without its body.

    `job` is the message's id, or where it has none a name made from its content. `queue` is the one
    whose dead letter it is, `own_queue` the one that its header names. Letters of one (job,
    attempt) with the same body have one `key`.
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
        """How long it has been dead, where it says since when."""
        return max(timedelta(), now - self.at) if self.at else None

    @property
    def data(self) -> dict[str, Any]:
        """The letter for programs."""
        return {
            "job": self.name,
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
    """What a message among the dead letters of that queue says. Never fails: anybody can put
    anything there.
    """
    headers = message.headers
    origin, reason, error, at = _cause(message, queue)
    attempt = attempt_of(message)
    job = message.message_id or _made_name(message)
    return DeadLetter(
        job=job,
        named=bool(message.message_id),
        key=key_of(queue, job, attempt, message.body),
        queue=queue,
        own_queue=_text(headers, "x-bridge-queue"),
        origin=origin,
        reason=reason,
        error=error,
        flow=_flow(message.body) or default_flow,
        attempt=attempt,
        execution=_execution(headers),
        at=at or _aware(message.timestamp),
        priority=message.priority,
        size=len(message.body),
    )


def key_of(queue: str, job: str, attempt: int, body: bytes) -> bytes:
    """What tells a job's attempt from any other, also where two publishers gave different jobs the
    same id.
    """
    told = f"{queue}\n{attempt}\n{job}\n".encode("utf-8", "surrogateescape")
    return hashlib.sha256(told + body).digest()[:16]


def key_of_copy(message: Message, *, queue: str) -> bytes:
    """The key of that queue's letter of which `to_replay` made this message."""
    return key_of(queue, message.message_id or "", attempt_of(message) - 1, message.body)


def attempt_of(message: Message) -> int:
    """The how-manieth attempt it was; 1 where nothing sensible says so."""
    value = message.headers.get(ATTEMPT)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else 1


def to_replay(letter: DeadLetter, message: Message) -> Message:
    """The message that puts a dead letter's job back: its next attempt, with a fresh budget of
    attempts.

    What the bridge keeps as headers stays headers: `expiration` would be lost on the way and
    `user_id` be refused.
    """
    attempt = letter.attempt + 1
    return message.to_republish({ATTEMPT: attempt, FIRST_ATTEMPT: attempt}, message_id=letter.job)


def obstacle(
    letter: DeadLetter, message: Message, *, max_priority: int, flows: Sequence[str] | None = None
) -> str | None:
    """Why a letter can't be put back into its queue, or None. What the bridge could read once needs
    no judging.

    `flows` are the patterns of flows that may be started, None where they aren't known.
    """
    if letter.own_queue not in (None, letter.queue):
        return f"its queue is {visible(letter.own_queue or '')}, not {letter.queue}"
    if letter.reason == Reason.FLOW_NOT_ALLOWED and flows is not None:
        may_start = letter.flow is not None and allowed(letter.flow, flows)
        return (
            None
            if may_start
            else f"BRIDGE_ALLOWED_FLOWS still doesn't allow flow {letter.flow or 'of its lane'}"
        )
    if letter.origin is Origin.BRIDGE and letter.reason != Reason.INVALID_MESSAGE:
        return None
    try:
        # Which flow the lane has is for the bridge to know: it need not stand in the settings of
        # who replays.
        decode(to_replay(letter, message), default_flow=ANY_FLOW, max_priority=max_priority)
    except InvalidMessage as error:
        return f"it would be a dead letter again: {error}"
    return None


def unclear(letters: Iterable[DeadLetter]) -> frozenset[bytes]:
    """The keys of letters without an id that can't be told apart: which of them went back, nobody
    could say.
    """
    counts = Counter(letter.key for letter in letters if not letter.named)
    return frozenset(key for key, count in counts.items() if count > 1)


class Fate(StrEnum):
    """What a replay does with a letter."""

    REPLAY = "replayed"
    SUCCEEDED = "succeeded"
    RUNNING = "running"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a replay does with a letter, and why, where it isn't put back."""

    letter: DeadLetter
    fate: Fate
    why: str = ""


def judge(
    letter: DeadLetter,
    *,
    obstacle: str | None = None,
    executions: Iterable[Execution] = (),
    ack_warning: bool = True,
) -> Verdict:
    """What a replay does with a letter, given its attempt's executions as they are now.

    Any of them counts, not only the newest: an operator's restart with another revision keeps the
    first one's start, and whichever ended in success did the job.
    """
    good = (State.SUCCESS, State.WARNING) if ack_warning else (State.SUCCESS,)
    by_state = {execution.state: execution for execution in executions}
    succeeded = next((by_state[state] for state in good if state in by_state), None)
    running = next((each for each in by_state.values() if not each.state.terminal), None)
    if succeeded:
        return Verdict(
            letter=letter,
            fate=Fate.SUCCEEDED,
            why=f"execution {succeeded.id} is {succeeded.state} by now",
        )
    if running:
        return Verdict(
            letter=letter, fate=Fate.RUNNING, why=f"execution {running.id} is {running.state} again"
        )
    if obstacle:
        return Verdict(letter=letter, fate=Fate.REFUSED, why=obstacle)
    return Verdict(letter=letter, fate=Fate.REPLAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which letters are meant: those that pass everything that is given. Empty, it means all."""

    names: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    flows: Sequence[str] = ()
    jobs: Sequence[str] = ()
    error: str = ""
    older_than: timedelta | None = None
    newer_than: timedelta | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __contains__(self, letter: DeadLetter) -> bool:
        return (
            (not self.names or not self.names.isdisjoint((letter.name, letter.job)))
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.flows or (letter.flow is not None and allowed(letter.flow, self.flows)))
            and (not self.jobs or any(fnmatchcase(letter.name, pattern) for pattern in self.jobs))
            and self.error.casefold() in letter.error.casefold()
            and self._of_age(letter.age(self.now))
        )

    @property
    def means_all(self) -> bool:
        """Whether nothing is given that a letter would have to pass."""
        return self == Selection(now=self.now)

    def _of_age(self, age: timedelta | None) -> bool:
        if self.older_than is None and self.newer_than is None:
            return True
        if age is None:
            return False
        return (self.older_than or timedelta()) <= age <= (self.newer_than or timedelta.max)


def _cause(message: Message, queue: str) -> tuple[Origin, str, str, datetime | None]:
    """Who put a message here, why in a word and in a line, and when."""
    if message.exchange == queue:
        # All else comes by the exchange for dead letters: this one by the lane's own, which had no
        # queue for it.
        key = visible(message.routing_key or "")
        error = (
            f"it was published to exchange {queue} with routing key '{key}', which led to no queue"
        )
        return Origin.BROKER, UNROUTABLE, error, None
    headers = message.headers
    if reason := _text(headers, "x-bridge-reason"):
        error = " ".join((_text(headers, "x-bridge-error") or "").split())
        return Origin.BRIDGE, visible(reason), visible(error), _time(_text(headers, "x-bridge-at"))
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else []:
        if isinstance(death, dict) and death.get("queue") == queue:
            reason = visible(str(death.get("reason")))
            at = death.get("time")
            error = f"RabbitMQ gave it up in {queue}: {reason.replace('_', ' ')}"
            return Origin.BROKER, reason, error, _aware(at) if isinstance(at, datetime) else None
    return (
        Origin.UNKNOWN,
        UNEXPLAINED,
        "neither the bridge nor RabbitMQ says how it came here",
        None,
    )


def _made_name(message: Message) -> str:
    """A name for a message without an id, the same whenever it is read: by it, it is shown,
    replayed and discarded.
    """
    headers = sorted(
        (key, repr(value))
        for key, value in message.headers.items()
        if not _NOT_CONTENT.fullmatch(key)
    )
    told = repr((headers, message.correlation_id, message.timestamp, message.priority)).encode()
    return f"unnamed-{hashlib.sha256(told + message.body).hexdigest()[:16]}"


def _flow(body: bytes) -> FlowName | None:
    """The flow that a body names, if it can be read that far."""
    try:
        data = from_json(body) if len(body) <= MAX_BODY else None
        return (
            FlowName.parse(data["flow"])
            if isinstance(data, dict) and isinstance(data.get("flow"), str)
            else None
        )
    except ValueError:
        return None


def _text(headers: Mapping[str, Any], name: str) -> str | None:
    value = headers.get(name)
    return value if isinstance(value, str) and value else None


def _execution(headers: Mapping[str, Any]) -> str | None:
    """The execution's id, if it can be one: it becomes part of a URL."""
    value = _text(headers, "x-bridge-execution")
    return value if value and _ID.fullmatch(value) else None


def _time(text: str | None) -> datetime | None:
    try:
        return _aware(datetime.fromisoformat(text)) if text else None
    except ValueError:
        return None


def _aware(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time and not time.tzinfo else time
