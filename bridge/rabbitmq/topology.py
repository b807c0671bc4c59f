"""The queues and exchanges: what they are to be, as data, and their declaration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelPreconditionFailed

from bridge.errors import TopologyMismatch

REPLIES = "kestra.replies"
_LIMIT = "x-delivery-limit"
ALTERNATE = "alternate-exchange"

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
        """As an earlier bridge made it: what it did not route to any queue was gone, or returned to
        who wanted that.
        """
        return replace(
            self,
            arguments={key: value for key, value in self.arguments.items() if key != ALTERNATE},
        )


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
        """As it is where RabbitMQ 3 made it, which knows no unlimited `x-delivery-limit`; an
        upgrade leaves it so.
        """
        return replace(
            self, arguments={key: value for key, value in self.arguments.items() if key != _LIMIT}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All that one lane needs at the broker; names follow the queue's."""

    jobs: Queue
    dead: Queue
    retries: tuple[Queue, ...]
    exchanges: tuple[Exchange, ...]

    @property
    def kind(self) -> Kind:
        """The jobs queue's type."""
        return "quorum" if self.jobs.arguments.get("x-queue-type") == "quorum" else "classic"


def dead_exchange(queue: str) -> str:
    """The exchange that a lane's dead letters go to; the queue behind it has the same name."""
    return f"{queue}.dead"


def dead_queue(queue: str) -> str:
    """The queue in which a lane's dead letters stand."""
    return dead_exchange(queue)


def retry_queue(queue: str, delay: int) -> str:
    """The queue in which a lane's retries wait so many seconds."""
    return f"{queue}.retry.{delay}"


def lead_misrouted(queue: str) -> str:
    """The command by which an exchange that is there leads to the dead letters what it routes to no
    queue.
    """
    pattern = queue.replace(".", r"\.")
    return (
        f"rabbitmqctl set_policy -p VHOST {queue}.misrouted '^{pattern}$' "
        f'\'{{"{ALTERNATE}": "{dead_exchange(queue)}"}}\' --apply-to exchanges'
    )


def replay_queue(queue: str) -> str:
    """The queue by which a lane's dead letters go back into it."""
    return f"{queue}.replay"


def choose_kind(wanted: Literal["auto", "classic", "quorum"], version: Version) -> Kind:
    """The queue type: quorum queues have strict priorities from RabbitMQ 4.3 on, before that only
    classic ones do.
    """
    if wanted == "auto":
        return "quorum" if version >= (4, 3) else "classic"
    return wanted


def candidates(wanted: Literal["auto", "classic", "quorum"], version: Version) -> tuple[Kind, ...]:
    """The queue types that will do, the preferred one first.

    A broker that was upgraded keeps the classic queue that it had, and that works.
    """
    first = choose_kind(wanted, version)
    return (first, "classic") if wanted == "auto" and first == "quorum" else (first,)


def plan(
    queue: str, *, kind: Kind, version: Version, max_priority: int, retry_delays: Sequence[int]
) -> Topology:
    """What a lane's queues and exchanges are to be."""
    return Topology(
        exchanges=(
            # What is published there with a routing key that leads nowhere goes to the dead
            # letters.
            Exchange(queue, ExchangeType.DIRECT, {ALTERNATE: dead_exchange(queue)}),
            Exchange(dead_exchange(queue), ExchangeType.FANOUT),
        ),
        jobs=Queue(
            queue,
            _jobs_arguments(queue, kind, version, max_priority),
            exchange=queue,
            routing_key=queue,
        ),
        # Side queues need no priorities and hold what must not be lost: replicated wherever that is
        # possible.
        dead=plan_dead(queue, version=version),
        retries=tuple(_retry(queue, delay) for delay in sorted(set(retry_delays))),
    )


def plan_dead(queue: str, *, version: Version) -> Queue:
    """What a lane's dead-letter queue is to be."""
    return Queue(
        dead_queue(queue),
        {"x-queue-type": "quorum", **_unlimited(version)},
        exchange=dead_exchange(queue),
    )


def plan_replay(queue: str, *, version: Version) -> Queue:
    """What a lane's replay queue is to be: what is rejected there, RabbitMQ itself hands on to the
    lane.
    """
    back = {"x-dead-letter-exchange": queue, "x-dead-letter-routing-key": queue}
    return Queue(
        replay_queue(queue),
        {"x-queue-type": "quorum", **back, **_AT_LEAST_ONCE, **_unlimited(version)},
    )


async def declare(connection: AbstractConnection, topology: Topology) -> None:
    """Declare a lane's exchanges and queues. What exists already with the same arguments stays as
    it is.

    Raises:
        TopologyMismatch: one exists with other arguments.
    """
    for exchange in topology.exchanges:
        await declare_one(connection, exchange)
    for queue in (topology.jobs, topology.dead, *topology.retries):
        await declare_one(connection, queue)


async def declare_one(connection: AbstractConnection, thing: Queue | Exchange) -> None:
    """Declare a queue and its binding, or an exchange, or leave it as it was made before; raises as
    `declare` does.

    An upgrade of the broker or of the bridge must not keep the bridge from starting; the doctor
    finds what is older.
    """
    try:
        await _declare(connection, thing)
    except TopologyMismatch:
        older = thing.of_before
        if older == thing or not await _is_as(connection, older):
            raise


async def _is_as(connection: AbstractConnection, thing: Queue | Exchange) -> bool:
    try:
        await _declare(connection, thing)
    except TopologyMismatch:
        return False
    return True


async def _declare(connection: AbstractConnection, thing: Queue | Exchange) -> None:
    what = "exchange" if isinstance(thing, Exchange) else "queue"
    async with _probing(connection, f"{what} {thing.name}") as channel:
        if isinstance(thing, Exchange):
            await channel.declare_exchange(
                thing.name, thing.type, durable=True, arguments=dict(thing.arguments)
            )
            return
        declared = await channel.declare_queue(
            thing.name, durable=True, arguments=dict(thing.arguments)
        )
        if thing.exchange:
            await declared.bind(thing.exchange, routing_key=thing.routing_key)


async def declare_replies(channel: AbstractChannel, name: str) -> str:
    """Declare the reply exchange and this replica's own queue on it; returns the queue's name."""
    exchange = await channel.declare_exchange(
        REPLY_EXCHANGE.name, REPLY_EXCHANGE.type, durable=True
    )
    queue = await channel.declare_queue(
        name, exclusive=True, auto_delete=True, arguments={"x-queue-type": "classic"}
    )
    await queue.bind(exchange, routing_key="#")
    return queue.name


def _jobs_arguments(queue: str, kind: Kind, version: Version, max_priority: int) -> dict[str, Any]:
    dead = {"x-dead-letter-exchange": dead_exchange(queue)}
    if kind == "classic":
        return {"x-queue-type": "classic", "x-max-priority": max_priority, **dead}
    return {"x-queue-type": "quorum", **dead, **_AT_LEAST_ONCE, **_unlimited(version)}


def _retry(queue: str, delay: int) -> Queue:
    back = {"x-dead-letter-exchange": queue, "x-dead-letter-routing-key": queue}
    return Queue(
        retry_queue(queue, delay),
        {"x-queue-type": "quorum", "x-message-ttl": delay * 1000, **back, **_AT_LEAST_ONCE},
    )


# A quorum queue hands a dead letter over by confirm only so (RabbitMQ's "Quorum Queues", since
# 3.10).
_AT_LEAST_ONCE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}


def _unlimited(version: Version) -> dict[str, int]:
    """From 4.0 on a quorum queue gives a message up after 20 returns by default: replicas that die
    aren't its fault.
    """
    return {_LIMIT: -1} if version >= (4, 0) else {}


@asynccontextmanager
async def _probing(connection: AbstractConnection, what: str) -> AsyncIterator[AbstractChannel]:
    """A channel for one declaration, since a refused one closes its channel."""
    try:
        async with connection.channel() as channel:
            yield channel
    except ChannelPreconditionFailed as error:
        raise TopologyMismatch(
            f"{what} exists with other arguments: {error}. Delete it once it is empty, or set "
            "BRIDGE_QUEUE_TYPE and "
            "BRIDGE_MAX_PRIORITY to what it was made with"
        ) from error
