"""Turns what the sources said into the report. Asks nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from bridge.job.attempt import ATTEMPT_LABEL, JOB_LABEL, QUEUE_LABEL
from bridge.job.execution import Execution, State
from bridge.operate.sources import Unavailable
from bridge.operate.status.report import (
    DeadStatus,
    JobStatus,
    LaneStatus,
    Oldest,
    ReplicaStatus,
    RetryStatus,
    ServerStatus,
    Status,
)
from bridge.operate.status.snapshot import BrokerSnapshot, KestraSnapshot, Snapshot
from bridge.rabbitmq.management import Consumer, ReplicaMetrics
from bridge.rabbitmq.topology import dead_queue, retry_queue
from bridge.settings import Lane

NEVER_STARTED_AFTER = 60.0
"""Seconds that an execution may stay CREATED before it stands out: Kestra begins within a second or
two."""


def summarize(snapshot: Snapshot) -> Status:
    """The report on a snapshot."""
    jobs = _jobs(snapshot)
    ours = None
    elsewhere = 0
    if jobs is not None:
        ours = [job for job in jobs if _may_be_in(job, snapshot.lanes)]
        elsewhere = len(jobs) - len(ours)
    metrics = snapshot.replica_metrics
    return Status(
        at=snapshot.at,
        rabbitmq=_server(snapshot.rabbitmq, snapshot.broker),
        alarms=_alarms(snapshot),
        kestra=_server(snapshot.kestra_url, snapshot.kestra),
        lanes=[_lane(snapshot, lane) for lane in snapshot.lanes],
        oldest=_oldest(metrics, ours or ()),
        jobs=ours,
        jobs_elsewhere=elsewhere,
        replicas=None if _replicas_are_late(snapshot) else _replicas(snapshot),
        metrics=metrics,
        unknown=_unknown(snapshot),
    )


def _server(
    address: str | None, answer: BrokerSnapshot | KestraSnapshot | Unavailable
) -> ServerStatus:
    version = None if isinstance(answer, Unavailable) else answer.version
    return ServerStatus(address=address, version=version)


def _alarms(snapshot: Snapshot) -> Sequence[str] | None:
    if isinstance(snapshot.management, Unavailable):
        return None
    return snapshot.management.alarms


def _lane(snapshot: Snapshot, lane: Lane) -> LaneStatus:
    state = snapshot.state(lane.queue)
    return LaneStatus(
        queue=lane.queue,
        exists=_exists(snapshot, lane.queue),
        kind=state.kind if state else None,
        ready=_ready_in_lane(snapshot, lane.queue),
        in_flight=_in_flight(snapshot, lane.queue),
        consumers=_consumers(snapshot, lane.queue),
        by_priority=state.by_priority if state else None,
        handing_on=_handing_on(snapshot, lane.queue),
        retries=[_retry(snapshot, lane, delay) for delay in snapshot.delays],
        dead_letters=_dead_letters(snapshot, dead_queue(lane.queue)),
    )


def _exists(snapshot: Snapshot, queue: str) -> bool | None:
    if isinstance(snapshot.broker, BrokerSnapshot):
        return snapshot.depth(queue) is not None
    # The management API may not list a queue yet that was just declared, so no entry proves
    # nothing.
    return True if snapshot.state(queue) else None


def _ready_in_lane(snapshot: Snapshot, queue: str) -> int | None:
    """A lane's ready messages. The number comes from the management API if it has one, like the
    lane's other numbers, so that they add up.
    """
    state = snapshot.state(queue)
    if state and state.ready is not None:
        return state.ready
    return _ready(snapshot, queue)


def _ready(snapshot: Snapshot, queue: str) -> int | None:
    """A queue's ready messages according to AMQP, which is up to date, else to the management
    API.
    """
    depth = snapshot.depth(queue)
    if depth:
        return depth.ready
    state = snapshot.state(queue)
    return state.ready if state else None


def _consumers(snapshot: Snapshot, queue: str) -> int | None:
    depth = snapshot.depth(queue)
    if depth:
        return depth.consumers
    state = snapshot.state(queue)
    return len(state.consumers) if state else None


def _handing_on(snapshot: Snapshot, queue: str) -> int | None:
    state = snapshot.state(queue)
    return state.handing_on if state else None


def _in_flight(snapshot: Snapshot, queue: str) -> int | None:
    """A lane's unacknowledged deliveries according to the management API, else to the replicas'
    metrics if every replica that was named answered.
    """
    state = snapshot.state(queue)
    if state and state.in_flight is not None:
        return state.in_flight
    answers = snapshot.replica_metrics
    if not answers or len(answers) < len(snapshot.metrics):
        return None
    return sum(metrics.in_flight.get(queue, 0) for metrics in answers.values())


def _retry(snapshot: Snapshot, lane: Lane, delay: int) -> RetryStatus:
    queue = retry_queue(lane.queue, delay)
    return RetryStatus(
        queue=queue,
        delay=delay,
        messages=_ready(snapshot, queue),
        handing_on=_handing_on(snapshot, queue),
    )


def _dead_letters(snapshot: Snapshot, queue: str) -> DeadStatus:
    reasons = snapshot.reasons.get(queue, {})
    if isinstance(reasons, Unavailable):
        reasons = {}
    return DeadStatus(
        queue=queue,
        messages=_ready(snapshot, queue),
        read=sum(reasons.values()),
        reasons=reasons,
    )


def _jobs(snapshot: Snapshot) -> list[JobStatus] | None:
    """The bridge's unfinished executions, the oldest first; None without Kestra's answer."""
    kestra = snapshot.kestra
    if isinstance(kestra, Unavailable):
        return None
    jobs = [_job(execution, kestra) for execution in kestra.unfinished if not execution.triggered]
    return sorted(jobs, key=lambda job: (-(job.age or 0.0), job.execution))


def _job(execution: Execution, kestra: KestraSnapshot) -> JobStatus:
    attempt = execution.labels.get(ATTEMPT_LABEL, "")
    age = None
    if execution.started:
        age = max(0.0, (kestra.now - execution.started).total_seconds())
    overdue = age is not None and age > NEVER_STARTED_AFTER
    return JobStatus(
        job=execution.labels.get(JOB_LABEL, ""),
        queue=execution.labels.get(QUEUE_LABEL),
        attempt=int(attempt) if attempt.isdecimal() else None,
        flow=str(execution.flow),
        execution=execution.id,
        state=execution.state.value,
        age=age,
        never_started=overdue and execution.state is State.CREATED,
        url=kestra.link(execution),
    )


def _may_be_in(job: JobStatus, lanes: Sequence[Lane]) -> bool:
    """Whether a job belongs to one of the lanes. An execution that doesn't name its queue counts
    too.
    """
    return job.queue is None or job.queue in {lane.queue for lane in lanes}


def _oldest(metrics: Mapping[str, ReplicaMetrics], jobs: Sequence[JobStatus]) -> Oldest | None:
    """The oldest delivery according to the replicas' metrics, else Kestra's oldest execution."""
    if metrics:
        return Oldest(what="delivery", seconds=max(found.oldest for found in metrics.values()))
    ages = [job.age for job in jobs if job.age is not None]
    return Oldest(what="execution", seconds=max(ages)) if ages else None


def _replicas(snapshot: Snapshot) -> list[ReplicaStatus] | None:
    if isinstance(snapshot.management, Unavailable):
        return None
    by_connection: dict[str, list[tuple[str, Consumer]]] = {}
    for lane in snapshot.lanes:
        state = snapshot.state(lane.queue)
        consumers = state.consumers if state else ()
        for consumer in consumers:
            by_connection.setdefault(consumer.connection, []).append((lane.queue, consumer))
    return [
        _replica(snapshot.management.since.get(connection), consumers)
        for connection, consumers in sorted(by_connection.items())
    ]


def _replica(since: datetime | None, consumers: Sequence[tuple[str, Consumer]]) -> ReplicaStatus:
    prefetch: Counter[str] = Counter()
    for queue, consumer in consumers:
        prefetch[queue] += consumer.prefetch
    _, first = consumers[0]
    return ReplicaStatus(host=first.host, since=since, prefetch=dict(prefetch))


def _replicas_are_late(snapshot: Snapshot) -> bool:
    """Whether AMQP counts consumers while the management API, whose figures are older, lists
    none.
    """
    if _replicas(snapshot) != []:
        return False
    depths = [snapshot.depth(lane.queue) for lane in snapshot.lanes]
    return any(depth.consumers for depth in depths if depth)


def _unknown(snapshot: Snapshot) -> list[str]:
    """The parts of the report that are missing, each with the reason."""
    needs_management = ["priorities", "alarms", "replicas"]
    if all(_in_flight(snapshot, lane.queue) is None for lane in snapshot.lanes):
        needs_management.insert(0, "in flight")
    parts: list[tuple[str, object]] = [
        ("ready messages, consumers, dead letters", snapshot.broker),
        *((f"reasons in {queue}", answer) for queue, answer in snapshot.reasons.items()),
        (", ".join(needs_management), snapshot.management),
        ("jobs", snapshot.kestra),
        *(("a replica's metrics", answer) for answer in snapshot.metrics.values()),
    ]
    unknown = [f"{part}: {answer.why}" for part, answer in parts if isinstance(answer, Unavailable)]
    if _replicas_are_late(snapshot):
        unknown.append("replicas: RabbitMQ's management API doesn't list the consumers yet")
    return unknown
