"""What `status` says: one picture of an installation, made of what each source told or why it told
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from bridge.job.attempt import ATTEMPT_LABEL, JOB_LABEL, QUEUE_LABEL
from bridge.job.execution import Execution, State
from bridge.operate.sources import Unavailable
from bridge.rabbitmq.inspector import Depth
from bridge.rabbitmq.management import Consumer, QueueState, ReplicaMetrics
from bridge.rabbitmq.topology import dead_queue, retry_queue
from bridge.settings import Lane

NEVER_STARTED_AFTER = 60.0
"""Seconds that an execution may stay CREATED before it stands out: Kestra begins within a second or
two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSnapshot:
    """What RabbitMQ tells by AMQP. A queue whose depth is None isn't there.

    `reasons` has of each dead-letter queue how many of its letters are there for which reason.
    """

    version: str
    depths: Mapping[str, Depth | None]
    reasons: Mapping[str, Mapping[str, int] | Unavailable] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementSnapshot:
    """What RabbitMQ's management API tells; `since` has those connections alone that this user may
    see.
    """

    alarms: Sequence[str]
    queues: Mapping[str, QueueState]
    since: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KestraSnapshot:
    """What Kestra tells: its version, its time, the executions that haven't ended, and where a
    person sees them.
    """

    version: str
    now: datetime
    unfinished: Sequence[Execution]
    link: Callable[[Execution], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What all sources told at one moment, and where they are, without credentials."""

    at: datetime
    rabbitmq: str
    kestra_url: str | None
    lanes: Sequence[Lane]
    retry_delays: Sequence[int]
    broker: BrokerSnapshot | Unavailable
    management: ManagementSnapshot | Unavailable
    kestra: KestraSnapshot | Unavailable
    metrics: Mapping[str, ReplicaMetrics | Unavailable] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStatus:
    """A retry queue. Each of its messages is due within `delay` seconds; which one when, RabbitMQ
    doesn't tell.

    `handing_on` are those that were due and are not back in the lane: more than for a moment there
    should be none.
    """

    queue: str
    delay: int
    messages: int | None
    handing_on: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadStatus:
    """A dead-letter queue: how many messages it has, and the reasons of the `read` that were looked
    at: all or none.
    """

    queue: str
    messages: int | None
    read: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatus:
    """A lane; what isn't known is None. `by_priority` is what is ready, where the broker tells.

    `handing_on` are messages that RabbitMQ itself gave up and that are not among the dead letters
    yet.
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
    """A consuming connection: from where, since when, and how many deliveries it may hold of each
    lane.
    """

    host: str
    since: datetime | None
    prefetch: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """Where a server is, if that is known, and its version, if it told."""

    address: str | None
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Oldest:
    """How long the oldest of what is under way has taken, and what was measured: a `delivery` or an
    `execution`.
    """

    what: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole picture."""

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
        """The picture as what JSON can hold."""
        data: dict[str, Any] = _plain(asdict(self))
        return data


def names(lanes: Iterable[Lane], retry_delays: Iterable[int]) -> list[str]:
    """Every queue that status looks at."""
    delays = sorted(set(retry_delays))
    return [
        name
        for lane in lanes
        for name in (
            lane.queue,
            *(retry_queue(lane.queue, delay) for delay in delays),
            dead_queue(lane.queue),
        )
    ]


def summarize(facts: Snapshot) -> Status:
    """The picture that the facts make."""
    jobs = _jobs(facts)
    ours = None if jobs is None else [job for job in jobs if _in_lanes(job, facts.lanes)]
    metrics = {
        url: found for url, found in facts.metrics.items() if isinstance(found, ReplicaMetrics)
    }
    return Status(
        at=facts.at,
        rabbitmq=_server(facts.rabbitmq, facts.broker),
        alarms=facts.management.alarms
        if isinstance(facts.management, ManagementSnapshot)
        else None,
        kestra=_server(facts.kestra_url, facts.kestra),
        lanes=[_lane(facts, lane) for lane in facts.lanes],
        oldest=_oldest(metrics, ours or ()),
        jobs=ours,
        jobs_elsewhere=len(jobs or ()) - len(ours or ()),
        replicas=None if _not_yet_told(facts) else _replicas(facts),
        metrics=metrics,
        unknown=_unknown(facts),
    )


def _server(
    address: str | None, told: BrokerSnapshot | KestraSnapshot | Unavailable
) -> ServerStatus:
    return ServerStatus(
        address=address, version=None if isinstance(told, Unavailable) else told.version
    )


def _lane(facts: Snapshot, lane: Lane) -> LaneStatus:
    depth, state = _depth(facts, lane.queue), _state(facts, lane.queue)
    return LaneStatus(
        queue=lane.queue,
        exists=depth is not None
        if isinstance(facts.broker, BrokerSnapshot)
        else (True if state else None),
        kind=state.kind if state else None,
        # Of one source and moment, so that they add up; what the management API doesn't tell yet is
        # known by AMQP.
        ready=state.ready if state and state.ready is not None else _ready(facts, lane.queue),
        in_flight=_in_flight(facts, lane.queue),
        consumers=depth.consumers if depth else (len(state.consumers) if state else None),
        by_priority=state.by_priority if state else None,
        handing_on=_handing_on(facts, lane.queue),
        retries=[
            RetryStatus(
                queue=name,
                delay=delay,
                messages=_ready(facts, name),
                handing_on=_handing_on(facts, name),
            )
            for delay in sorted(set(facts.retry_delays))
            for name in (retry_queue(lane.queue, delay),)
        ],
        dead_letters=_dead(facts, dead_queue(lane.queue)),
    )


def _dead(facts: Snapshot, queue: str) -> DeadStatus:
    told = _reasons(facts).get(queue)
    reasons = told if told and not isinstance(told, Unavailable) else {}
    return DeadStatus(
        queue=queue, messages=_ready(facts, queue), read=sum(reasons.values()), reasons=reasons
    )


def _reasons(facts: Snapshot) -> Mapping[str, Mapping[str, int] | Unavailable]:
    return facts.broker.reasons if isinstance(facts.broker, BrokerSnapshot) else {}


def _depth(facts: Snapshot, queue: str) -> Depth | None:
    return facts.broker.depths.get(queue) if isinstance(facts.broker, BrokerSnapshot) else None


def _state(facts: Snapshot, queue: str) -> QueueState | None:
    return (
        facts.management.queues.get(queue)
        if isinstance(facts.management, ManagementSnapshot)
        else None
    )


def _ready(facts: Snapshot, queue: str) -> int | None:
    """By AMQP, which tells what is now, else by the management API."""
    if depth := _depth(facts, queue):
        return depth.ready
    state = _state(facts, queue)
    return state.ready if state else None


def _handing_on(facts: Snapshot, queue: str) -> int | None:
    state = _state(facts, queue)
    return state.handing_on if state else None


def _in_flight(facts: Snapshot, queue: str) -> int | None:
    """By the management API, else by what the replicas say of themselves, if all of those that were
    named do.
    """
    state = _state(facts, queue)
    if state and state.in_flight is not None:
        return state.in_flight
    told = [
        found.in_flight.get(queue, 0)
        for found in facts.metrics.values()
        if isinstance(found, ReplicaMetrics)
    ]
    return sum(told) if told and len(told) == len(facts.metrics) else None


def _jobs(facts: Snapshot) -> list[JobStatus] | None:
    """The bridge's executions that haven't ended, the oldest first."""
    if not isinstance(facts.kestra, KestraSnapshot):
        return None
    kestra = facts.kestra
    jobs = [_job(execution, kestra) for execution in kestra.unfinished if not execution.triggered]
    return sorted(jobs, key=lambda job: (-(job.age or 0.0), job.execution))


def _job(execution: Execution, kestra: KestraSnapshot) -> JobStatus:
    attempt = execution.labels.get(ATTEMPT_LABEL, "")
    age = max(0.0, (kestra.now - execution.started).total_seconds()) if execution.started else None
    return JobStatus(
        job=execution.labels.get(JOB_LABEL, ""),
        queue=execution.labels.get(QUEUE_LABEL),
        attempt=int(attempt) if attempt.isdecimal() else None,
        flow=str(execution.flow),
        execution=execution.id,
        state=execution.state.value,
        age=age,
        never_started=execution.state is State.CREATED
        and age is not None
        and age > NEVER_STARTED_AFTER,
        url=kestra.link(execution),
    )


def _in_lanes(job: JobStatus, lanes: Sequence[Lane]) -> bool:
    """Whether a job is one of these lanes', or may be: its execution doesn't say of which queue it
    is.
    """
    return job.queue is None or any(job.queue == lane.queue for lane in lanes)


def _oldest(metrics: Mapping[str, ReplicaMetrics], jobs: Sequence[JobStatus]) -> Oldest | None:
    """By the replicas' word, which counts from the delivery, else by the executions that Kestra
    has.
    """
    if metrics:
        return Oldest(what="delivery", seconds=max(found.oldest for found in metrics.values()))
    ages = [job.age for job in jobs if job.age is not None]
    return Oldest(what="execution", seconds=max(ages)) if ages else None


def _replicas(facts: Snapshot) -> list[ReplicaStatus] | None:
    if not isinstance(facts.management, ManagementSnapshot):
        return None
    found: dict[str, list[tuple[str, Consumer]]] = {}
    for lane in facts.lanes:
        state = _state(facts, lane.queue)
        for consumer in state.consumers if state else ():
            found.setdefault(consumer.connection, []).append((lane.queue, consumer))
    return [
        _replica(facts.management.since.get(name), held) for name, held in sorted(found.items())
    ]


def _not_yet_told(facts: Snapshot) -> bool:
    """Whether AMQP counts consumers of which the management API, whose figures are older, tells
    none.
    """
    depths = [_depth(facts, lane.queue) for lane in facts.lanes]
    return _replicas(facts) == [] and any(depth.consumers for depth in depths if depth)


def _replica(since: datetime | None, held: Sequence[tuple[str, Consumer]]) -> ReplicaStatus:
    prefetch: Counter[str] = Counter()
    for queue, consumer in held:
        prefetch[queue] += consumer.prefetch
    return ReplicaStatus(host=held[0][1].host, since=since, prefetch=dict(prefetch))


def _unknown(facts: Snapshot) -> list[str]:
    """Which parts of the picture are missing, and why."""
    by_management = ["priorities", "alarms", "replicas"]
    if all(_in_flight(facts, lane.queue) is None for lane in facts.lanes):
        by_management.insert(0, "in flight")
    missing: list[tuple[str, object]] = [
        ("ready messages, consumers, dead letters", facts.broker),
        *((f"reasons in {queue}", told) for queue, told in _reasons(facts).items()),
        (", ".join(by_management), facts.management),
        ("jobs", facts.kestra),
        *(("a replica's metrics", found) for found in facts.metrics.values()),
    ]
    unknown = [
        f"{part}: {source.why}" for part, source in missing if isinstance(source, Unavailable)
    ]
    late = (
        ["replicas: RabbitMQ's management API doesn't tell of the consumers yet"]
        if _not_yet_told(facts)
        else []
    )
    return unknown + late


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
