"""What a look at RabbitMQ's queues by AMQP tells, which any user of theirs may take, without changing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic
from pamqp.common import FieldTable

from bridge.broker import announced_version


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages of a queue are ready, and how many consumers it has."""

    ready: int
    consumers: int


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Why messages are dead letters: of the first `read` ones in a queue."""

    read: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


class Inspection:
    """Looks, on a connection of `Broker.connection`."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    @property
    def version(self) -> str:
        """The broker's version as it introduced itself."""
        return announced_version(self._connection)

    async def depth(self, queue: str) -> Depth | None:
        """A queue's depth, or None where there's none of that name."""
        try:
            async with self._connection.channel() as channel:
                declared = (await channel.declare_queue(queue, passive=True)).declaration_result
        except ChannelNotFoundEntity:
            return None
        return Depth(declared.message_count or 0, declared.consumer_count or 0)

    async def dead_letters(self, queue: str, *, limit: int) -> DeadLetters:
        """Why the first messages of a dead-letter queue are there; they go back to it in their order.

        They are away from the queue meanwhile, for as long as it takes to read so many.
        """
        reasons: Counter[str] = Counter()
        async with self._connection.channel(publisher_confirms=False) as channel:
            raw = await channel.get_underlay_channel()
            while reasons.total() < limit:
                message = await raw.basic_get(queue, no_ack=False)
                if isinstance(message.delivery, Basic.GetEmpty):
                    break
                reasons[reason_of(message.header.properties.headers or {})] += 1
        return DeadLetters(reasons.total(), dict(reasons.most_common()))


def reason_of(headers: FieldTable) -> str:
    """Why a message is a dead letter: the bridge's reason, or the broker's own (RabbitMQ's "Dead Letter Exchanges")."""
    if isinstance(reason := headers.get("x-bridge-reason"), str):
        return reason
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else None
    reason = first.get("reason") if isinstance(first, dict) else None
    return f"{reason} (by RabbitMQ)" if isinstance(reason, str) else "unknown"
