"""What `status` reports. The names of the fields are the keys of its JSON. None is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from bridge.rabbitmq.management import ReplicaMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStatus:
    """A retry queue. Each of its messages is due within `delay` seconds; RabbitMQ doesn't say when
    exactly.

    `handing_on` counts messages that were due and have not reached the lane yet. Normally it is 0,
    or more for only a moment.
    """

    queue: str
    delay: int
    messages: int | None
    handing_on: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadStatus:
    """A dead-letter queue and its number of messages. `reasons` counts by reason the `read`
    messages that were looked at, which are all or none.
    """

    queue: str
    messages: int | None
    read: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatus:
    """A lane. `by_priority` counts the ready messages of each priority, if the broker reports them.

    `handing_on` counts messages that RabbitMQ itself gave up and that have not reached the
    dead-letter queue yet.
    """

    queue: str
    exists: bool | None
    kind: str | None
    ready: int | None
    in_flight: int | None
    consumers: int | None
    by_priority: Mapping[str, int] | None
    handing_on: int | None
    retries: Sequence[RetryStatus]
    dead_letters: DeadStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job whose execution has not ended; `age` is in seconds, by Kestra's clock.

    `never_started`: Kestra created the execution more than a minute ago and has not begun to run
    it.
    """

    job: str
    queue: str | None
    attempt: int | None
    flow: str
    execution: str
    state: str
    age: float | None
    never_started: bool
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """A consuming connection: its host, when it connected, and its prefetch in each lane.

    `reporter`: it reports ends to all replicas.
    """

    host: str
    since: datetime | None
    prefetch: Mapping[str, int]
    reporter: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """A server's address, and its version if it answered."""

    address: str | None
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Oldest:
    """How many seconds the oldest work in progress has taken. `what` was measured: a `delivery` or
    an `execution`.
    """

    what: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole report. `unknown` names each missing part with the reason."""

    at: datetime
    rabbitmq: ServerStatus
    alarms: Sequence[str] | None
    kestra: ServerStatus
    lanes: Sequence[LaneStatus]
    oldest: Oldest | None
    jobs: Sequence[JobStatus] | None
    jobs_elsewhere: int
    replicas: Sequence[ReplicaStatus] | None
    metrics: Mapping[str, ReplicaMetrics]
    unknown: Sequence[str]

    def as_data(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        data: dict[str, Any] = _plain(asdict(self))
        return data


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case datetime():
            return value.isoformat(timespec="seconds")
        case _:
            return value
