"""Queues, consumers and bindings as RabbitMQ's management API reports them.

Which fields exist depends on the version and on the queue's type; what is said of them here was
seen on 3.10.8, 4.0.5 and 4.3.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A consumer of a queue.

    `timeout` is its acknowledgement time-out in seconds, unless it asked for another one itself
    (`own_timeout`); 3.10 doesn't report it.
    """

    tag: str
    connection: str
    host: str
    prefetch: int
    timeout: float | None = None
    own_timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue. What the broker doesn't report, or not yet, is None.

    `by_priority` counts the ready messages of each class, the most urgent first. `delivery_limit`
    is the limit in effect, by argument and policy, -1 for none; only 4.x reports it. `policy` is
    what policies set, and None until the queue has reported about itself. `handing_on` counts
    messages that have left the queue for its dead-letter exchange and have not arrived yet; quorum
    queues keep those. `owner` names the connection that an exclusive queue belongs to.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ready: int | None = None
    in_flight: int | None = None
    by_priority: Mapping[str, int] | None = None
    delivery_limit: int | None = None
    handing_on: int | None = None
    policy: Mapping[str, Any] | None = None
    policy_names: tuple[str, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A binding from an exchange to a queue or to another exchange."""

    source: str
    destination: str
    routing_key: str


def parse_queue(data: Mapping[str, Any]) -> QueueState:
    """A queue from the API's JSON. Never fails: a value that can't be read counts as missing."""
    arguments = mapping(data.get("arguments"))
    delivery_limit = whole(data.get("delivery_limit"))
    if data.get("delivery_limit") == "unlimited":
        delivery_limit = -1
    policy = data.get("effective_policy_definition")
    policies = (data.get("policy"), data.get("operator_policy"))
    return QueueState(
        name=str(data.get("name")),
        kind=str(data.get("type", arguments.get("x-queue-type", "classic"))),
        arguments=arguments,
        ready=whole(data.get("messages_ready")),
        in_flight=whole(data.get("messages_unacknowledged")),
        by_priority=_priorities(data),
        delivery_limit=delivery_limit,
        handing_on=whole(data.get("messages_dlx")),
        policy=None if policy is None else mapping(policy),
        policy_names=tuple(str(name) for name in policies if name),
        consumers=tuple(_consumer(row) for row in rows(data.get("consumer_details"))),
        owner=mapping(data.get("owner_pid_details")).get("name"),
    )


def parse_bindings(data: Any) -> list[Binding]:
    """Bindings from the API's JSON, but for every queue's own to the default exchange."""
    return [
        Binding(
            source=row["source"],
            destination=row["destination"],
            routing_key=str(row.get("routing_key", "")),
        )
        for row in rows(data)
        if row.get("source") and row.get("destination")
    ]


def whole(value: Any) -> int | None:
    """A whole number from JSON; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return None


def mapping(value: Any) -> Mapping[str, Any]:
    """An object from JSON; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list from JSON; none for anything else."""
    if not isinstance(value, list):
        return []
    return [row for row in value if isinstance(row, dict)]


def _priorities(data: Mapping[str, Any]) -> dict[str, int] | None:
    """The ready messages by priority: each value (classic queues of 3.x, quorum queues of 4.3), or
    two classes.
    """
    status = mapping(data.get("backing_queue_status"))
    by_value = data.get("messages_by_priority", status.get("priority_lengths"))
    if by_value is not None:
        counts = {}
        for priority, value in mapping(by_value).items():
            count = whole(value)
            if count and priority.isdigit():
                counts[priority] = count
        return {priority: counts[priority] for priority in sorted(counts, key=int, reverse=True)}
    high = whole(data.get("messages_ready_high"))
    normal = whole(data.get("messages_ready_normal"))
    if high is None or normal is None:
        return None
    # Quorum queues of 4.0 to 4.2.
    classes = {"5 and above": high, "4 and below": normal}
    return {name: count for name, count in classes.items() if count}


def _consumer(data: Mapping[str, Any]) -> Consumer:
    channel = mapping(data.get("channel_details"))
    arguments = mapping(data.get("arguments"))
    return Consumer(
        tag=str(data.get("consumer_tag", "")),
        connection=str(channel.get("connection_name", "")),
        host=str(channel.get("peer_host", "")),
        prefetch=whole(data.get("prefetch_count")) or 0,
        timeout=_seconds(data.get("consumer_timeout")),
        own_timeout=_seconds(arguments.get("x-consumer-timeout")),
    )


def _seconds(milliseconds: Any) -> float | None:
    number = whole(milliseconds)
    return None if number is None else number / 1000
