"""What a look at RabbitMQ by AMQP tells, without changing anything there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused

from bridge.rabbitmq import topology
from bridge.rabbitmq.connection import announced_version

OWN_QUEUES = "amq.gen-*"
"""How RabbitMQ names the queues of one connection alone."""

Right = Literal["configure", "write", "read"]


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages of a queue are ready, and how many consumers it has."""

    ready: int
    consumers: int


@dataclass(frozen=True, slots=True)
class DeclareResult:
    """Whether a queue or an exchange is there, and what is other than it should be, in the broker's
    words.
    """

    exists: bool
    differs: str | None = None
    of_before: bool = False
    """It is as RabbitMQ 3 or an earlier bridge made it (`topology`), which doesn't count as a
    difference."""


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """A right that the user hasn't got, and on what."""

    right: Right
    on: str


class Inspector:
    """Looks, on a connection of `Broker.connection`. What the user may not do is noted in
    `refused`.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self.refused: set[Refusal] = set()

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

    async def check(self, thing: topology.Queue | topology.Exchange) -> DeclareResult:
        """Whether something is there, and as it should be: what is there is declared once more,
        which changes nothing.

        Who may not configure it isn't told what differs.
        """
        try:
            await self._declare(thing, passive=True)
            await self._declare(thing, passive=False)
        except ChannelNotFoundEntity:
            return DeclareResult(exists=False)
        except ChannelPreconditionFailed as error:
            if thing.of_before != thing and await self._is_as(thing.of_before):
                return DeclareResult(exists=True, of_before=True)
            return DeclareResult(exists=True, differs=" ".join(str(error).split()))
        except ChannelAccessRefused:
            self.refused.add(Refusal("configure", thing.name))
        return DeclareResult(exists=True)

    async def _is_as(self, thing: topology.Queue | topology.Exchange) -> bool:
        try:
            await self._declare(thing, passive=False)
        except ChannelPreconditionFailed:
            return False
        return True

    async def try_rights(self, name: str) -> None:
        """Note whether the user may write to and read from a queue and the exchange of the same
        name.

        A binding is taken away that isn't there, which takes both rights and is no error. Where one
        of the two isn't there, nothing is noted.
        """
        try:
            async with self._connection.channel() as channel:
                raw = await channel.get_underlay_channel()
                await raw.queue_unbind(
                    queue=name, exchange=name, routing_key=f"none-{uuid.uuid4().hex}"
                )
        except ChannelAccessRefused as error:
            self.refused.add(Refusal("read" if _of_exchange(error) else "write", name))
        except ChannelNotFoundEntity:
            pass

    async def try_publishing(self) -> None:
        """Note whether the user may publish to queues by their names.

        A queue of our own takes that right too, if its dead letters are to go the same way. Nothing
        is published: while RabbitMQ has an alarm, it reads no more from a connection that did.
        """
        try:
            async with self._connection.channel() as channel:
                await channel.declare_queue(
                    exclusive=True, auto_delete=True, arguments={"x-dead-letter-exchange": ""}
                )
        except ChannelAccessRefused as error:
            if _of_exchange(error):
                self.refused.add(Refusal("write", "amq.default"))

    @asynccontextmanager
    async def replies(self, routing_key: str) -> AsyncIterator[asyncio.Queue[bytes] | None]:
        """What arrives at the reply exchange, in a queue of our own as a replica has one.

        None where there is no such exchange, or where the user may not.
        """
        arrived: asyncio.Queue[bytes] = asyncio.Queue()

        async def take(message: DeliveredMessage) -> None:
            arrived.put_nowait(message.body)

        async with self._connection.channel(publisher_confirms=False) as channel:
            raw = await channel.get_underlay_channel()
            missing: tuple[Right, str] = "configure", OWN_QUEUES
            try:
                queue = await channel.declare_queue(exclusive=True, auto_delete=True)
                missing = "write", OWN_QUEUES
                await queue.bind(topology.REPLIES, routing_key=routing_key)
                missing = "read", OWN_QUEUES
                await raw.basic_consume(queue.name, take, no_ack=True)
            except ChannelAccessRefused as error:
                self.refused.add(
                    Refusal("read", topology.REPLIES) if _of_exchange(error) else Refusal(*missing)
                )
            except ChannelNotFoundEntity:
                pass
            yield None if raw.is_closed else arrived

    async def _declare(self, thing: topology.Queue | topology.Exchange, *, passive: bool) -> None:
        async with self._connection.channel() as channel:
            arguments = None if passive else dict(thing.arguments)
            if isinstance(thing, topology.Exchange):
                await channel.declare_exchange(
                    thing.name, thing.type, durable=True, passive=passive, arguments=arguments
                )
            else:
                await channel.declare_queue(
                    thing.name, durable=True, passive=passive, arguments=arguments
                )


def _of_exchange(error: ChannelAccessRefused) -> bool:
    """Whether it was an exchange's rights that were missing, where an operation takes those of two
    things.
    """
    return " to exchange " in str(error)
