"""What the sources of `status` said at one moment, or why they said nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from bridge.job.execution import Execution
from bridge.operate.sources import Unavailable
from bridge.rabbitmq.inspector import Depth
from bridge.rabbitmq.management import QueueState, ReplicaMetrics
from bridge.rabbitmq.topology import dead_queue, retry_queue
from bridge.settings import Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSnapshot:
    """What RabbitMQ said over AMQP. The depth of a queue that doesn't exist is None.

    `reasons` counts each dead-letter queue's messages by reason.
    """

    version: str
    depths: Mapping[str, Depth | None]
    reasons: Mapping[str, Mapping[str, int] | Unavailable] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementSnapshot:
    """What RabbitMQ's management API said. `since` has only the connections that this user may
    see. `reporter` is the connection of the replica that reports ends to the others.
    """

    alarms: Sequence[str]
    queues: Mapping[str, QueueState]
    since: Mapping[str, datetime] = field(default_factory=dict)
    reporter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KestraSnapshot:
    """What Kestra said: its version, its time and its unfinished executions. `link` gives the
    address of an execution's page.
    """

    version: str
    now: datetime
    unfinished: Sequence[Execution]
    link: Callable[[Execution], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """A queue. None is unknown; `state` comes from the management API."""

    name: str
    state: QueueState | None = None
    exists: bool | None = None
    ready: int | None = None
    consumers: int | None = None

    @property
    def handing_on(self) -> int | None:
        """How many messages are on their way to the queue's dead-letter exchange."""
        return self.state.handing_on if self.state else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What all sources said at one moment. The addresses have no credentials in them."""

    at: datetime
    rabbitmq: str
    kestra_url: str | None
    lanes: Sequence[Lane]
    retry_delays: Sequence[int]
    broker: BrokerSnapshot | Unavailable
    management: ManagementSnapshot | Unavailable
    kestra: KestraSnapshot | Unavailable
    metrics: Mapping[str, ReplicaMetrics | Unavailable] = field(default_factory=dict)

    @property
    def delays(self) -> list[int]:
        """The retry delays in seconds, each once, the shortest first."""
        return sorted(set(self.retry_delays))

    @property
    def replica_metrics(self) -> dict[str, ReplicaMetrics]:
        """The metrics of the replicas that answered, by address."""
        return {
            url: answer
            for url, answer in self.metrics.items()
            if isinstance(answer, ReplicaMetrics)
        }

    @property
    def reasons(self) -> Mapping[str, Mapping[str, int] | Unavailable]:
        """The reasons in each dead-letter queue; empty without RabbitMQ's answer."""
        if isinstance(self.broker, Unavailable):
            return {}
        return self.broker.reasons

    def queue(self, name: str) -> QueueSnapshot:
        """A queue as AMQP and the management API describe it together."""
        seen = QueueSnapshot(name=name)
        if isinstance(self.management, ManagementSnapshot):
            state = self.management.queues.get(name)
            # The API may not list a queue yet that was just declared, so a missing entry proves
            # nothing.
            if state is not None:
                seen = replace(
                    seen,
                    state=state,
                    exists=True,
                    ready=state.ready,
                    consumers=len(state.consumers),
                )
        if isinstance(self.broker, BrokerSnapshot):
            depth = self.broker.depths.get(name)
            seen = replace(seen, exists=depth is not None)
            # AMQP is up to date, so its numbers replace those of the API.
            if depth is not None:
                seen = replace(seen, ready=depth.ready, consumers=depth.consumers)
        return seen


def queue_names(lanes: Iterable[Lane], retry_delays: Iterable[int]) -> list[str]:
    """Every queue that status looks at."""
    delays = sorted(set(retry_delays))
    names = []
    for lane in lanes:
        names.append(lane.queue)
        names += [retry_queue(lane.queue, delay) for delay in delays]
        names.append(dead_queue(lane.queue))
    return names
