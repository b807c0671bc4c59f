"""The queues and exchanges that a lane needs, as data. `declaration` declares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aio_pika import ExchangeType

from bridge.settings import BrokerSettings, Lane

REPLIES = "kestra.replies"
ALTERNATE = "alternate-exchange"
_LIMIT = "x-delivery-limit"

_AT_LEAST_ONCE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
"""Only with these does a quorum queue wait for a confirm when it dead-letters (RabbitMQ's "Quorum
Queues", since 3.10)."""

Kind = Literal["classic", "quorum"]
Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: ExchangeType
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_before(self) -> Exchange:
        """The exchange as an earlier bridge made it: without an alternate exchange, so that an
        unroutable message was dropped, or returned to a publisher that asked for that.
        """
        return replace(self, arguments=_without(self.arguments, ALTERNATE))


REPLY_EXCHANGE = Exchange(REPLIES, ExchangeType.TOPIC)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, bound to an exchange of the same lane by `routing_key` (None: not bound)."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    exchange: str | None = None
    routing_key: str = ""

    @property
    def of_before(self) -> Queue:
        """The queue as RabbitMQ 3 made it, which has no unlimited `x-delivery-limit`; an upgrade
        leaves it so.
        """
        return replace(self, arguments=_without(self.arguments, _LIMIT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All that one lane needs at the broker; every name starts with the queue's."""

    jobs: Queue
    dead: Queue
    retries: tuple[Queue, ...]
    exchanges: tuple[Exchange, ...]

    @property
    def kind(self) -> Kind:
        """The jobs queue's type."""
        return "quorum" if self.jobs.arguments.get("x-queue-type") == "quorum" else "classic"


def dead_exchange(queue: str) -> str:
    """The exchange for a lane's dead letters; the queue behind it has the same name."""
    return f"{queue}.dead"


def dead_queue(queue: str) -> str:
    """The queue that keeps a lane's dead letters."""
    return dead_exchange(queue)


def retry_queue(queue: str, delay: int) -> str:
    """The queue in which a lane's retries wait for `delay` seconds."""
    return f"{queue}.retry.{delay}"


def replay_queue(queue: str) -> str:
    """The queue through which a lane's dead letters go back into it."""
    return f"{queue}.replay"


def reporter_lock(queue: str) -> str:
    """The exclusive queue that the reporter of a lane's replicas holds."""
    return f"{queue}.reporter"


def ledger_queue(queue: str) -> str:
    """The stream in which replicas claim a lane's jobs."""
    return f"{queue}.ledger"


def lead_misrouted(queue: str) -> str:
    """The command that makes an existing exchange send unroutable messages to the dead letters."""
    policy = f'{{"{ALTERNATE}": "{dead_exchange(queue)}"}}'
    return _set_policy(f"{queue}.misrouted", queue, policy, "exchanges")


def lift_limit(queue: str) -> str:
    """The command that lifts the delivery limit of an existing queue; it needs neither a restart
    nor a move.
    """
    return _set_policy(queue, queue, '{"delivery-limit": -1}', "queues")


def choose_kind(wanted: Literal["auto", "classic", "quorum"], version: Version) -> Kind:
    """The queue type: from RabbitMQ 4.3 on quorum queues have strict priorities, before only
    classic ones.
    """
    if wanted == "auto":
        return "quorum" if version >= (4, 3) else "classic"
    return wanted


def candidates(wanted: Literal["auto", "classic", "quorum"], version: Version) -> tuple[Kind, ...]:
    """The queue types that will do, the preferred one first.

    An upgraded broker keeps its classic queue, and that works.
    """
    first = choose_kind(wanted, version)
    if wanted == "auto" and first == "quorum":
        return (first, "classic")
    return (first,)


def plans(lane: Lane, settings: BrokerSettings, version: Version) -> dict[Kind, Topology]:
    """The plans that will do for a lane, by the type of its queue, the preferred one first."""
    return {
        kind: plan(
            lane.queue,
            kind=kind,
            version=version,
            max_priority=settings.max_priority,
            retry_delays=settings.retry_delays,
        )
        for kind in candidates(settings.queue_type, version)
    }


def plan(
    queue: str, *, kind: Kind, version: Version, max_priority: int, retry_delays: Sequence[int]
) -> Topology:
    """The queues and exchanges that a lane needs."""
    return Topology(
        exchanges=(
            # A message that is published here with an unknown routing key becomes a dead letter.
            Exchange(queue, ExchangeType.DIRECT, {ALTERNATE: dead_exchange(queue)}),
            Exchange(dead_exchange(queue), ExchangeType.FANOUT),
        ),
        jobs=Queue(
            queue,
            _jobs_arguments(queue, kind, version, max_priority),
            exchange=queue,
            routing_key=queue,
        ),
        # Side queues need no priorities and must lose nothing: replicated wherever possible.
        dead=plan_dead(queue, version=version),
        retries=tuple(_retry(queue, delay) for delay in sorted(set(retry_delays))),
    )


def plan_dead(queue: str, *, version: Version) -> Queue:
    """The dead-letter queue that a lane needs."""
    return Queue(
        dead_queue(queue),
        {"x-queue-type": "quorum", **_unlimited(version)},
        exchange=dead_exchange(queue),
    )


def plan_replay(queue: str, *, version: Version) -> Queue:
    """The replay queue that a lane needs: RabbitMQ itself moves what is rejected there to the
    lane.
    """
    return Queue(
        replay_queue(queue),
        {"x-queue-type": "quorum", **_back_to(queue), **_AT_LEAST_ONCE, **_unlimited(version)},
    )


def plan_ledger(queue: str, *, window: float) -> Queue:
    """The stream of a lane's ledger, which keeps claims for `window` seconds.

    It is bounded too, so that it is read within seconds: to about 200,000 claims of 130 bytes.
    RabbitMQ drops a segment at a time.
    """
    return Queue(
        ledger_queue(queue),
        {
            "x-queue-type": "stream",
            "x-max-age": f"{int(window)}s",
            "x-max-length-bytes": 26_000_000,
            "x-stream-max-segment-size-bytes": 2_000_000,
        },
    )


def _jobs_arguments(queue: str, kind: Kind, version: Version, max_priority: int) -> dict[str, Any]:
    dead = {"x-dead-letter-exchange": dead_exchange(queue)}
    if kind == "classic":
        return {"x-queue-type": "classic", "x-max-priority": max_priority, **dead}
    return {"x-queue-type": "quorum", **dead, **_AT_LEAST_ONCE, **_unlimited(version)}


def _retry(queue: str, delay: int) -> Queue:
    return Queue(
        retry_queue(queue, delay),
        {
            "x-queue-type": "quorum",
            "x-message-ttl": delay * 1000,
            **_back_to(queue),
            **_AT_LEAST_ONCE,
        },
    )


def _back_to(queue: str) -> dict[str, str]:
    return {"x-dead-letter-exchange": queue, "x-dead-letter-routing-key": queue}


def _unlimited(version: Version) -> dict[str, int]:
    """From 4.0 on a quorum queue drops a message after 20 returns by default, but a message is not
    to blame for replicas that die.
    """
    return {_LIMIT: -1} if version >= (4, 0) else {}


def _without(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != name}


def _set_policy(name: str, of: str, definition: str, apply_to: str) -> str:
    """The rabbitmqctl command that sets a policy on exactly one queue or exchange."""
    pattern = of.replace(".", r"\.")
    return (
        f"rabbitmqctl set_policy -p VHOST {name} '^{pattern}$' '{definition}' --apply-to {apply_to}"
    )
