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
    queue = snapshot.queue(lane.queue)
    kind = None
    by_priority = None
    ready = queue.ready
    if queue.state:
        kind = queue.state.kind
        by_priority = queue.state.by_priority
        # The lane's other numbers come from the management API. They add up only with its own
        # number of ready messages.
        if queue.state.ready is not None:
            ready = queue.state.ready
    return LaneStatus(
        queue=lane.queue,
        exists=queue.exists,
        kind=kind,
        ready=ready,
        in_flight=_in_flight(snapshot, lane.queue),
        consumers=queue.consumers,
        by_priority=by_priority,
        handing_on=queue.handing_on,
        retries=[_retry(snapshot, lane, delay) for delay in snapshot.delays],
        dead_letters=_dead_letters(snapshot, dead_queue(lane.queue)),
    )


def _in_flight(snapshot: Snapshot, queue: str) -> int | None:
    """A lane's unacknowledged deliveries according to the management API, else to the replicas'
    metrics if every replica that was named answered.
    """
    state = snapshot.queue(queue).state
    if state and state.in_flight is not None:
        return state.in_flight
    answers = snapshot.replica_metrics
    if not answers or len(answers) < len(snapshot.metrics):
        return None
    return sum(metrics.in_flight.get(queue, 0) for metrics in answers.values())


def _retry(snapshot: Snapshot, lane: Lane, delay: int) -> RetryStatus:
    queue = snapshot.queue(retry_queue(lane.queue, delay))
    return RetryStatus(
        queue=queue.name,
        delay=delay,
        messages=queue.ready,
        handing_on=queue.handing_on,
    )


def _dead_letters(snapshot: Snapshot, queue: str) -> DeadStatus:
    reasons = snapshot.reasons.get(queue, {})
    if isinstance(reasons, Unavailable):
        reasons = {}
    return DeadStatus(
        queue=queue,
        messages=snapshot.queue(queue).ready,
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
        times = [replica.oldest for replica in metrics.values()]
        return Oldest(what="delivery", seconds=max(times))
    ages = [job.age for job in jobs if job.age is not None]
    if not ages:
        return None
    return Oldest(what="execution", seconds=max(ages))


def _replicas(snapshot: Snapshot) -> list[ReplicaStatus] | None:
    if isinstance(snapshot.management, Unavailable):
        return None
    by_connection: dict[str, list[tuple[str, Consumer]]] = {}
    for lane in snapshot.lanes:
        state = snapshot.management.queues.get(lane.queue)
        if state is None:
            continue
        for consumer in state.consumers:
            by_connection.setdefault(consumer.connection, []).append((lane.queue, consumer))
    return [
        _replica(
            snapshot.management.since.get(connection),
            consumers,
            reporter=connection == snapshot.management.reporter,
        )
        for connection, consumers in sorted(by_connection.items())
    ]


def _replica(
    since: datetime | None, consumers: Sequence[tuple[str, Consumer]], *, reporter: bool
) -> ReplicaStatus:
    prefetch: Counter[str] = Counter()
    for queue, consumer in consumers:
        prefetch[queue] += consumer.prefetch
    _, first = consumers[0]
    return ReplicaStatus(host=first.host, since=since, prefetch=dict(prefetch), reporter=reporter)


def _replicas_are_late(snapshot: Snapshot) -> bool:
    """Whether AMQP counts consumers while the management API, whose figures are older, lists
    none.
    """
    if _replicas(snapshot) != []:
        return False
    return any(snapshot.queue(lane.queue).consumers for lane in snapshot.lanes)


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
